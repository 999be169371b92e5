"""The analysis, end to end: profile → measure → merge → evaluate → predict → report.

What is analysed is one of the three kinds of `suites`: tasks (everything), bare checkpoints (the metrics of
weight space), or a ready table of pairs (prediction).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import Tensor

from mergeability.context import Clock, Run
from mergeability.data.calibration import calibration_sample
from mergeability.data.image_cache import prepared
from mergeability.data.inputs import Inputs
from mergeability.data.tasks import Images, Split, Task
from mergeability.devices import chosen_device
from mergeability.errors import UserError
from mergeability.evaluation.batchnorm import has_batchnorm
from mergeability.evaluation.evaluator import Judge, pixel_accuracy
from mergeability.evaluation.merges import (
    Evaluation,
    Outcomes,
    Recalibration,
    Save,
    Trial,
    describe,
    evaluate_models,
    given_alpha,
    pair_table,
    set_table,
)
from mergeability.members import data_free
from mergeability.metrics.measure import measure
from mergeability.models.clip import ClipModel
from mergeability.pipeline.merge_writer import MergeWriter
from mergeability.pipeline.predict import (
    FEWEST_FOR_PREDICTION,
    PairOutcomes,
    predict_pairs,
    predict_table,
    scored,
    with_own_accuracies,
)
from mergeability.pipeline.request import ProfileSettings, Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import CheckpointSuite, TableSuite, TaskSuite
from mergeability.prediction import Scorer
from mergeability.prediction.pair_table import outcome_methods
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.progress import Progress
from mergeability.provenance import provenance
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

logger = logging.getLogger(__name__)


def analyse(request: Request, progress: Progress, facts: Mapping[str, Any] | None = None) -> Analysis:
    """Run every stage that the suite has data for.

    Args:
        request: what to do.
        progress: wraps long loops: (items, description, total) → the items.
        facts: more entries for `run.json`, such as the configuration.

    Raises:
        UserError: something is missing or wrong; says what to do.
    """
    # First, since what is not there would else be found after minutes.
    request = replace(request, device=chosen_device(request.device))
    scorer = None if request.fitted is None else Scorer.load(request.fitted)
    clock, store = Clock(), Store(request.store)
    match request.suite:
        case TaskSuite() as suite:
            parts = _analyse_tasks(suite, request, store, progress, clock)
        case CheckpointSuite() as suite:
            parts = _analyse_checkpoints(suite, request, store, progress, clock)
        case TableSuite() as suite:
            parts = _analyse_table(suite, request, store, progress, clock)
    if scorer is not None:
        by_scorer = scored(scorer, parts["pairs"], request)
        parts |= {"scorer": scorer, "scores": by_scorer.scores, "transfer": by_scorer.transfer}
    run = {
        **(facts or {}),
        **parts.pop("facts", {}),
        "seconds": clock.seconds,
        "computed": dict(store.computed),
        "found": dict(store.found),
        **provenance(),
    }
    return Analysis(title=f"Mergeability of {request.suite.name}", run=run, **parts)


def _analyse_tasks(
    suite: TaskSuite, request: Request, store: Store, progress: Progress, clock: Clock
) -> dict[str, Any]:
    _require_models(suite.tasks, request)
    sets = _chosen_sets(request, tuple(suite.tasks))
    # Models that no chosen pair has need not be there; all tasks' images stay the pool of the activations.
    whole, suite = suite, _with_tasks(suite, request, sets)
    with clock.stage("loading models and images"):
        vectors = suite.load(store, request.profile.layout)
        heads = suite.heads()
        encoder = suite.model.architecture_only().visual
        views = _views(whole, request.profile, encoder, heads, store)
        judge = _judge(suite, request, encoder, heads, store)
    with clock.stage("measuring metrics"):
        profiles = Profiles(vectors, views, _surroundings(request, store, progress))
        table = measure(profiles, request.metrics, on_error=request.on_error)
    with clock.stage("evaluating models"):
        models = evaluate_models(vectors, judge)
        if suite.pixel_baseline:
            models["pixel_accuracy"] = _pixel_accuracies(suite, store, progress)
    with clock.stage("merging and evaluating"):
        evaluation = Evaluation(
            vectors,
            judge,
            models,
            request.merging.scales,
            profiles=_merge_profiles(suite, request, vectors, judge, progress),
            recalibration=Recalibration(
                judge, _views(suite, request.profile, encoder, heads, store, for_merging=True)
            )
            if has_batchnorm(encoder)
            else None,
            save=_saver(vectors, request, sets, suite.model),
        )
        outcomes = evaluation.sets(request.merges, sets, progress)
    pairs = with_own_accuracies(_with_outcomes(table, request, sets, outcomes), models)
    methods = outcomes.methods if any(len(one) == 2 for one in sets) else []
    merged_sets = (
        set_table(outcomes.accuracies[outcomes.accuracies["arity"] > 2])
        if len(outcomes.accuracies)
        else pd.DataFrame()
    )
    predicted = predict_pairs(
        PairOutcomes(pairs, list(request.metrics), methods, merged_sets),
        sets,
        request,
        Run(store=store, progress=progress, clock=clock),
    )
    return {
        "models": models,
        "pairs": pairs,
        "sets": merged_sets,
        "accuracies": outcomes.accuracies,
        "curves": outcomes.curves,
        "metrics": list(request.metrics),
        "methods": outcomes.methods,
        "alphas": _alphas(outcomes),
        "prediction": predicted.study,
        "fitted": predicted.fitted,
        "missing": [*_missing(table), *outcomes.notes, *predicted.notes],
        "facts": {
            "base_sha256": vectors.base_hash,
            "checkpoint_sha256": vectors.hashes,
            "merges": {name: describe(method) for name, method in request.merges.items()},
        },
    }


def _analyse_checkpoints(
    suite: CheckpointSuite, request: Request, store: Store, progress: Progress, clock: Clock
) -> dict[str, Any]:
    if len(suite.models) < 2:
        raise UserError(f"Comparing needs at least two models; suite.models names {len(suite.models)}.")
    sets = _chosen_sets(request, tuple(map(str, suite.models)))
    if request.merges:
        _check_merges_without_data(request)
    with clock.stage("measuring metrics"):
        vectors = suite.load(store, request.profile.layout)
        profiles = Profiles(vectors, None, _surroundings(request, store, progress))
        table = measure(profiles, request.metrics, on_error=request.on_error)
    if request.merges:
        with clock.stage("merging"):
            _merge_without_data(vectors, request, sets, progress)
    return {
        "models": pd.DataFrame(),
        "pairs": table.reset_index(),
        "metrics": list(request.metrics),
        "methods": [],
        "alphas": {},
        "prediction": None,
        "missing": [
            *_missing(table),
            "No merge was evaluated and nothing predicted: suite=checkpoints has no images.",
        ],
        "facts": {
            "base_sha256": vectors.base_hash,
            "checkpoint_sha256": vectors.hashes,
            "merges": {name: describe(method) for name, method in request.merges.items()},
        },
    }


def _analyse_table(
    suite: TableSuite, request: Request, store: Store, progress: Progress, clock: Clock
) -> dict[str, Any]:
    pairs = suite.read()
    names = list(suite.metrics or [name for name in request.metrics if name in pairs.columns])
    if not names:
        raise UserError(
            f"{suite.table} has none of the metrics asked for. Name its columns in suite.metrics=[…]."
        )
    found = outcome_methods(pairs)
    absent = [method for method in suite.methods or () if method not in found]
    if absent:
        raise UserError(
            f"{suite.table} has no outcomes of {', '.join(absent)}; it has those of {', '.join(found) or 'no method'}."
        )
    methods = list(suite.methods or found)
    predicted = predict_table(
        PairOutcomes(pairs, names, methods),
        suite.rows,
        request,
        Run(store=store, progress=progress, clock=clock),
    )
    return {
        "models": pd.DataFrame(),
        "pairs": predicted.pairs,
        "metrics": names,
        "methods": methods,
        "alphas": {},
        "prediction": predicted.study,
        "fitted": predicted.fitted,
    }


def _require_models(models: Mapping[str, Any], request: Request) -> None:
    if len(models) < 2:
        raise UserError(f"Merging needs at least two models; the suite has {len(models)}.")
    if request.merges and request.predictors and len(models) < FEWEST_FOR_PREDICTION:
        raise UserError(
            f"Prediction needs at least {FEWEST_FOR_PREDICTION} tasks, the suite has {len(models)}. "
            "Add tasks, or leave prediction out with predictor=none."
        )


def _chosen_sets(request: Request, tasks: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Choose what is merged, and refuse at once what a method cannot merge."""
    sets = request.merging.chosen_sets.choose(tasks)
    for name, method in request.merges.items():
        count = method.models
        other = next((len(one) for one in sets if count is not None and len(one) != count), None)
        if other is not None:
            raise UserError(
                f"{name} merges exactly {count} models, and arity asks for {other}. "
                f"Leave {name} out of merge=, or set arity={count}."
            )
    return sets if request.merges or request.merging.pairs is not None else []


def _with_tasks(suite: TaskSuite, request: Request, sets: Sequence[tuple[str, ...]]) -> TaskSuite:
    if request.merging.pairs is None:
        return suite
    named = {task for one in sets for task in one}
    return replace(suite, tasks={name: task for name, task in suite.tasks.items() if name in named})


def _surroundings(request: Request, store: Store, progress: Progress) -> Run:
    return Run(store, progress, request.device, request.profile.memory_budget)


def _judge(
    suite: TaskSuite, request: Request, encoder: Any, heads: Mapping[str, Tensor], store: Store
) -> Judge:
    def images(split: Split) -> dict[str, Images]:
        return {name: _prepared(suite, task, split, store) for name, task in suite.tasks.items()}

    tunes = request.merging.scales.tunes(request.merges)
    return Judge(
        encoder,
        suite.model.preprocess,
        _evaluated_as(suite.model),
        heads,
        images("test"),
        store,
        validation=images("validation") if tunes else {},
        device=request.device,
        precision="bfloat16" if request.device.startswith("cuda") else "float32",
        subset=request.merging.test_images,
        validation_subset=request.merging.validation_images,
        subset_seed=request.merging.seed,
    )


def _prepared(suite: TaskSuite, task: Task, split: Split, store: Store) -> Images:
    return prepared(task, split, suite.model.resize, suite.model.image_size, store)


def _merge_profiles(
    suite: TaskSuite,
    request: Request,
    vectors: TaskVectors,
    judge: Judge,
    progress: Progress,
) -> Profiles | None:
    """Gather the images for the methods that need them; None where none does."""
    if not any(method.needs_data for method in request.merges.values()):
        return None
    views = _views(suite, request.profile, judge.encoder, judge.heads, judge.store, for_merging=True)
    return Profiles(vectors, views, _surroundings(request, judge.store, progress))


def _saver(
    vectors: TaskVectors, request: Request, sets: Sequence[tuple[str, ...]], model: ClipModel | None
) -> Save | None:
    """Return what writes each merge into the run's folder; None where merges are not kept."""
    if not request.merging.keeps or not request.merges or request.folder is None:
        return None
    scales = request.merging.scales
    columns = [column for name, one in request.merges.items() for column in scales.columns(name, one)]
    return MergeWriter(
        request.folder / "merged", vectors, request.merging.export, model, expected=len(columns) * len(sets)
    )


def _with_outcomes(
    table: pd.DataFrame, request: Request, sets: Sequence[tuple[str, ...]], outcomes: Outcomes
) -> pd.DataFrame:
    """Put the outcomes of pairs beside their metrics; only the chosen pairs where some were chosen."""
    if request.merging.pairs is not None:
        table = table.loc[list(sets)]
    of_pairs = outcomes.accuracies
    if len(of_pairs):
        of_pairs = of_pairs[of_pairs["arity"] == 2]
    if len(of_pairs):
        table = table.join(pair_table(of_pairs))
    return table.reset_index()


def _alphas(outcomes: Outcomes) -> dict[str, Any]:
    """Say at which scale each method's merges are; the median where it was tuned merge by merge."""
    if not len(outcomes.accuracies):
        return {}
    found: dict[str, Any] = {}
    for method, values in outcomes.accuracies.groupby("method", sort=False)["alpha"]:
        low, high = float(values.min()), float(values.max())
        found[str(method)] = low if low == high else f"{values.median():g} ({low:g} to {high:g})"
    return found


def _check_merges_without_data(request: Request) -> None:
    demanding = [name for name, method in request.merges.items() if method.needs_data]
    if demanding:
        raise UserError(
            f"{', '.join(demanding)} needs calibration images, which suite=checkpoints has not. "
            f"Without data merge by {', '.join(data_free())}."
        )
    if not request.merging.keeps:
        raise UserError(
            "suite=checkpoints has no images to evaluate merges on: add save=true to write them, or leave out merge=."
        )
    if request.merging.scales.tunes(request.merges):
        raise UserError(
            "Tuning alpha needs validation images, which suite=checkpoints has not: give a number."
        )


def _merge_without_data(
    vectors: TaskVectors, request: Request, sets: Sequence[tuple[str, ...]], progress: Progress
) -> None:
    save = _saver(vectors, request, sets, None)
    assert save is not None
    merges = [(chosen, name) for chosen in sets for name in request.merges]
    for chosen, name in progress(merges, "merging", len(merges)):
        trial = Trial(vectors.select(chosen), request.merges[name])
        (alpha,) = request.merging.scales.columns(name, trial.method).values()
        assert alpha is not None
        save(trial, name, *given_alpha(alpha, trial), pd.DataFrame())


def _views(
    suite: TaskSuite,
    profile: ProfileSettings,
    encoder: Any,
    heads: Mapping[str, Tensor],
    store: Store,
    *,
    for_merging: bool = False,
) -> Views:
    count = profile.merge_samples if for_merging else profile.samples
    samples = {
        name: calibration_sample(
            task,
            count,
            profile.seed,
            held_out=_prepared(suite, task, "validation", store),
            fewer=for_merging,
        )
        for name, task in suite.tasks.items()
    }
    calibration = {
        name: Inputs({"images": suite.model.preprocess(one.images)}, one.labels)
        for name, one in samples.items()
    }
    return Views(
        encoder=encoder,
        heads=heads,
        calibration=calibration,
        pool=profile.pool,
        layer=profile.layer,
        configuration=suite.model.configuration,
    )


def _evaluated_as(model: ClipModel) -> dict[str, Any]:
    return {"model": model.configuration, "mean": list(model.mean), "std": list(model.std)}


def _pixel_accuracies(suite: TaskSuite, store: Store, progress: Progress) -> dict[str, float]:
    tasks = progress(suite.tasks.items(), "pixel baseline", len(suite.tasks))
    return {
        name: pixel_accuracy(
            _prepared(suite, task, "train", store),
            _prepared(suite, task, "validation", store),
            _prepared(suite, task, "test", store),
            store,
        )
        for name, task in tasks
    }


def _missing(table: pd.DataFrame) -> list[str]:
    """Say in sentences what has no value, and why."""
    return [*table.attrs.get("failures", ()), *table.attrs.get("undefined", ())]
