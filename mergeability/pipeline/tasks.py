"""The analysis of a suite of tasks: metrics of every pair, merges evaluated on test images, and prediction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
from torch import Tensor, nn

from mergeability.checks import alike_remarks
from mergeability.context import Run
from mergeability.data.calibration import calibration_sample
from mergeability.data.inputs import SPLITS, Images, Inputs, Samples, Split
from mergeability.data.tasks import Task
from mergeability.data.texts.reading import read_texts
from mergeability.errors import UserError
from mergeability.evaluation.batchnorm import has_batchnorm
from mergeability.evaluation.evaluator import Evaluator, pixel_accuracy
from mergeability.evaluation.merge import Recalibration, own_weights
from mergeability.evaluation.merges import Evaluation, Outcomes, evaluate_models
from mergeability.evaluation.outcome_tables import pair_table, set_table
from mergeability.evaluation.probes import Probe, probes_on
from mergeability.evaluation.scales import UNLABELLED
from mergeability.evaluation.text_baseline import tfidf_accuracy
from mergeability.metrics.functional import functional_names, of_models
from mergeability.metrics.measure import measure
from mergeability.models.clip import ClipModel
from mergeability.pipeline.budget import check_budget, evaluated_sets, predicted_others, with_outcomes
from mergeability.pipeline.layers import layer_cosines
from mergeability.pipeline.merges import (
    chosen_sets,
    merge_writer,
    recorded,
    with_functional_metrics,
    without_value,
)
from mergeability.pipeline.predict import (
    FEWEST_FOR_PREDICTION,
    PairOutcomes,
    predict_pairs,
    with_own_accuracies,
)
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import TaskSuite
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors


def analyse_tasks(suite: TaskSuite, request: Request, run: Run) -> Analysis:
    """Measure, merge, evaluate and predict.

    Raises:
        UserError: too few tasks, a missing model, or images or models that do not fit together.
    """
    _require_tasks(suite, request)
    check_budget(request)
    sets = chosen_sets(request, tuple(suite.tasks))
    # Models outside the chosen pairs need not exist; activations still use the images of all tasks.
    everything, merged = (
        _Material(suite, request, run),
        _Material(_of_sets(suite, request, sets), request, run),
    )
    with run.clock.stage("loading models and images"):
        vectors = merged.suite.load(run.store, request.profile.layout)
        views, evaluator = everything.views(merged.heads), merged.evaluator
    with run.clock.stage("measuring metrics"):
        profiles = Profiles(vectors, views, run)
        table = measure(profiles, request.metrics, on_error=request.on_error)
        evaluated, of_budget = evaluated_sets(sets, table, request)
    with run.clock.stage("evaluating models"):
        models = evaluate_models(vectors, evaluator)
        for column, accuracies in merged.baselines().items():
            models[column] = accuracies
    with run.clock.stage("merging and evaluating"):
        outcomes = _evaluation(vectors, merged, models, evaluated).sets(request.merges, evaluated, run)
    pairs = with_own_accuracies(_with_outcomes(table, request, sets, outcomes), models)
    layers, of_layers = layer_cosines(profiles, pairs)
    models = models.assign(**of_models(profiles, request.metrics))
    methods = outcomes.methods if any(len(one) == 2 for one in sets) else []
    merged_sets = _larger_sets(outcomes, profiles, request)
    others = predicted_others(pairs, methods, request)
    studied = with_outcomes(pairs, methods) if request.merging.evaluate is not None else pairs
    predicted = predict_pairs(
        PairOutcomes(studied, list(request.metrics), methods, merged_sets), evaluated, request, run
    )
    return Analysis(
        title=f"Mergeability of {suite.name}",
        pairs=pairs,
        metrics=list(request.metrics),
        methods=outcomes.methods,
        models=models,
        alphas=_alphas(outcomes),
        prediction=predicted.study,
        missing=[
            *without_value(table),
            *everything.fewer,
            *everything.remarks,
            *outcomes.notes,
            *of_budget,
            *others.notes,
            *predicted.notes,
            *of_layers,
        ],
        run=recorded(vectors, request),
        sets=merged_sets,
        accuracies=outcomes.accuracies,
        curves=outcomes.curves,
        fitted=None if predicted.fitted is None else predicted.fitted.with_models(vectors.hashes),
        evaluated=None if request.merging.evaluate is None else len(evaluated),
        predicted_pairs=others.predictions,
        predicted_accuracy=others.accuracy,
        layers=layers,
    )


@dataclass(frozen=True)
class _Material:
    """The samples, heads and encoder of a suite, each loaded on first use."""

    suite: TaskSuite
    request: Request
    run: Run

    @cached_property
    def encoder(self) -> nn.Module:
        return self.suite.model.encoder_only()

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        return self.suite.heads()

    def samples(self, task: Task, split: Split) -> Samples:
        return self.suite.model.samples(task, split, self.run.store)

    def split(self, split: Split) -> dict[str, Samples]:
        return {name: self.samples(task, split) for name, task in self.suite.tasks.items()}

    def views(self, heads: dict[str, Tensor], *, for_merging: bool = False) -> Views:
        """Draw the calibration samples for metrics, or for merge methods, which use more samples."""
        model, profile = self.suite.model, self.request.profile
        samples = {
            name: calibration_sample(
                task,
                profile.merge_samples if for_merging else profile.samples,
                profile.seed,
                held_out=self.samples(task, "validation"),
                fewer=for_merging,
            )
            for name, task in self.suite.tasks.items()
        }
        calibration = {name: model.inputs(one) for name, one in samples.items()}
        unlabelled = {} if for_merging or not functional_names(self.request.metrics) else self.unlabelled
        return Views(
            encoder=self.encoder,
            heads=heads,
            calibration=calibration,
            pool=profile.pool,
            layer=profile.layer,
            configuration=model.configuration,
            unlabelled=unlabelled,
        )

    @cached_property
    def unlabelled(self) -> dict[str, Inputs]:
        """Unlabelled samples of each task, on which functional metrics compare predictions."""
        return self.drawn(self.request.profile.unlabelled)

    def drawn(self, count: int) -> dict[str, Inputs]:
        """Draw unlabelled samples of each task; a smaller sample is the beginning of a larger one."""
        model, profile = self.suite.model, self.request.profile
        drawn = {
            name: calibration_sample(
                task, count, profile.seed, held_out=self.samples(task, self.pool), fewer=True
            )
            for name, task in self.suite.tasks.items()
        }
        return {name: model.inputs(one).without_labels() for name, one in drawn.items()}

    @property
    def pool(self) -> Split:
        """The split from which unlabelled images are drawn."""
        return "train" if self.request.profile.unlabelled_from == "train" else "validation"

    @property
    def available(self) -> dict[str, int]:
        """Task → number of samples from which unlabelled samples can be drawn."""
        return {name: len(self.samples(task, self.pool)) for name, task in self.suite.tasks.items()}

    @property
    def fewer(self) -> list[str]:
        """Return messages about tasks that have fewer unlabelled images than requested."""
        merging, found = self.request.merging, []
        uses = {self.request.profile.unlabelled: bool(functional_names(self.request.metrics))}
        if self.request.merges:
            tunes = merging.scales.tunes(self.request.merges, UNLABELLED)
            asked = merging.probe or self.request.profile.unlabelled
            uses[asked] = uses.get(asked, False) or merging.probe is not None or tunes
        for asked in (count for count, used in uses.items() if used):
            few = [f"{name} ({count})" for name, count in self.available.items() if count < asked]
            found += [f"Fewer than {asked} unlabelled images: {', '.join(few)}."] if few else []
        return found

    @property
    def remarks(self) -> list[str]:
        """Return sentences about images that were left out or modified."""
        found = [
            sentence for task in self.suite.tasks.values() for sentence in self.suite.model.task_remarks(task)
        ]
        return [*alike_remarks(self.suite.tasks, "tasks"), *found]

    @cached_property
    def evaluator(self) -> Evaluator:
        model, merging, device = self.suite.model, self.request.merging, self.run.device
        tunes = merging.scales.tunes(self.request.merges)
        return Evaluator(
            self.encoder,
            model.preprocess,
            model.settings,
            self.heads,
            self.split("test"),
            self.run.store,
            validation=self.split("validation") if tunes else {},
            device=device,
            precision="bfloat16" if device.startswith("cuda") else "float32",
            subset=merging.test_images,
            validation_subset=merging.validation_images,
            subset_seed=merging.seed,
        )

    def baselines(self) -> dict[str, dict[str, float]]:
        """Fit logistic regression to every task's pixels or words, and return test accuracies by baseline and task."""

        def of_pixels(item: tuple[str, Task]) -> tuple[str, float]:
            name, task = item
            train, validation, test = (self._images(task, split) for split in SPLITS)
            return name, pixel_accuracy(train, validation, test, self.run.store)

        def of_words(item: tuple[str, Task]) -> tuple[str, float]:
            name, task = item
            train, validation, test = (read_texts(task, split) for split in SPLITS)
            return name, tfidf_accuracy(train, validation, test, self.run.store)

        tasks, run, found = list(self.suite.tasks.items()), self.run, {}
        if self.suite.pixel_baseline:
            found["pixel_accuracy"] = dict(run.map(of_pixels, tasks, description="pixel baseline"))
        if self.suite.tfidf_baseline:
            found["tfidf_accuracy"] = dict(run.map(of_words, tasks, description="TF-IDF baseline"))
        return found

    def _images(self, task: Task, split: Split) -> Images:
        samples = self.samples(task, split)
        if not isinstance(samples, Images):
            raise UserError(
                f"suite.pixel_baseline=true needs images, but task '{task.name}' consists of texts. Remove"
                " suite.pixel_baseline=true."
            )
        return samples


def _evaluation(
    vectors: TaskVectors, material: _Material, models: pd.DataFrame, sets: Sequence[tuple[str, ...]]
) -> Evaluation:
    request, evaluator, model = material.request, material.evaluator, material.suite.model
    demanding = any(method.needs_data for method in request.merges.values())
    renews = has_batchnorm(material.encoder)
    views = material.views(material.heads, for_merging=True) if demanding or renews else None
    probe, unlabelled = _probes(vectors, material)
    return Evaluation(
        vectors,
        evaluator,
        models,
        request.merging.scales,
        probe=probe,
        unlabelled=unlabelled,
        profiles=Profiles(vectors, views, material.run) if demanding else None,
        recalibration=Recalibration(evaluator, views) if renews and views is not None else None,
        save=merge_writer(vectors, request, sets, model if isinstance(model, ClipModel) else None),
    )


def _probes(vectors: TaskVectors, material: _Material) -> tuple[Probe | None, Probe | None]:
    """Return what looks at merges, and what looks at the scales tried without labels, on images of their own."""
    merging, evaluator = material.request.merging, material.evaluator
    tunes = merging.scales.tunes(material.request.merges, UNLABELLED)
    if merging.probe is None and not tunes:
        return None, None
    return probes_on(
        evaluator,
        material.drawn(merging.probe or material.request.profile.unlabelled),
        lambda task: own_weights(vectors, task),
        looks=merging.probe is not None,
        tunes=tunes,
    )


def _require_tasks(suite: TaskSuite, request: Request) -> None:
    count = len(suite.tasks)
    if count < 2:
        raise UserError(f"Expected at least two models to merge, but the suite has {count}.")
    if request.merges and request.predictors and count < FEWEST_FOR_PREDICTION:
        raise UserError(
            f"Prediction requires at least {FEWEST_FOR_PREDICTION} tasks, but the suite has {count}. "
            "Add tasks, or disable prediction with predictor=none."
        )


def _of_sets(suite: TaskSuite, request: Request, sets: Sequence[tuple[str, ...]]) -> TaskSuite:
    """Keep the tasks of the chosen pairs, or all tasks if no pairs were chosen."""
    if request.merging.pairs is None:
        return suite
    named = {task for one in sets for task in one}
    return replace(suite, tasks={name: task for name, task in suite.tasks.items() if name in named})


def _with_outcomes(
    table: pd.DataFrame, request: Request, sets: Sequence[tuple[str, ...]], outcomes: Outcomes
) -> pd.DataFrame:
    """Join the outcomes of pairs to their metrics; only the chosen pairs where some were chosen."""
    if request.merging.pairs is not None:
        table = table.loc[list(sets)]
    of_pairs = outcomes.accuracies
    if len(of_pairs):
        of_pairs = of_pairs[of_pairs["arity"] == 2]
    if len(of_pairs):
        probes = outcomes.probes
        table = table.join(pair_table(of_pairs, probes[probes["arity"] == 2] if len(probes) else None))
    return table.reset_index()


def _larger_sets(outcomes: Outcomes, profiles: Profiles, request: Request) -> pd.DataFrame:
    """Arrange the outcomes of sets of more than two models, with the functional metrics of each set."""
    accuracies = outcomes.accuracies
    probes = outcomes.probes[outcomes.probes["arity"] > 2] if len(outcomes.probes) else None
    table = set_table(accuracies[accuracies["arity"] > 2], probes) if len(accuracies) else pd.DataFrame()
    return with_functional_metrics(table, accuracies, profiles, request.metrics)


def _alphas(outcomes: Outcomes) -> dict[str, Any]:
    """Return the scale of each method's merges; the median and the range where it was tuned merge by merge."""
    if not len(outcomes.accuracies):
        return {}
    found: dict[str, Any] = {}
    for method, values in outcomes.accuracies.groupby("method", sort=False)["alpha"]:
        low, high = float(values.min()), float(values.max())
        found[str(method)] = low if low == high else f"{values.median():g} ({low:g} to {high:g})"
    return found
