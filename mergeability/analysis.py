"""The analysis, end to end: profile → measure → merge → evaluate → predict → report.

What is analysed is one of the three kinds of `suites`: tasks (everything), bare checkpoints (the metrics of
weight space), or a ready table of pairs (prediction).
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from mergeability.data.calibration import calibration_sample
from mergeability.data.tasks import Images
from mergeability.devices import chosen_device
from mergeability.errors import UserError
from mergeability.evaluation.accuracy import Judge, pixel_accuracy
from mergeability.evaluation.merge_quality import describe, evaluate_models, evaluate_pairs
from mergeability.metrics.measure import measure
from mergeability.models.clip import ClipModel
from mergeability.prediction import PredictionResult, evaluate_predictors
from mergeability.prediction.table import outcome_methods
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.profiles.workers import Progress
from mergeability.provenance import provenance
from mergeability.reporting.report import write_report
from mergeability.reporting.tables import Analysis
from mergeability.store import Store, write_text
from mergeability.suites import CheckpointSuite, TableSuite, TaskSuite
from mergeability.task_vectors import TaskVectors

logger = logging.getLogger(__name__)
FEWEST_FOR_PREDICTION = 4
RESULTS = (
    "pairs.csv",
    "models.csv",
    "prediction.json",
    "predictions.csv",
    "coefficients.csv",
    "run.json",
    "report.html",
)


@dataclass(frozen=True)
class ProfileSettings:
    """Options of the evidence.

    Attributes:
        samples: calibration images of each task.
        seed: of their choice.
        layer: dotted name of the layer whose activations are averaged; the last block when None.
        pool: the tasks whose images make the pool of the activations; all of the suite when None.
        split_qkv: take the queries, keys and values of a fused attention for three matrices.
        matricize: "conv" takes a convolution's kernel for the matrix out × (in·height·width).
        memory_budget: GiB that what is computed may take at a time.
    """

    samples: int = 10
    seed: int = 42
    layer: str | None = None
    pool: Sequence[str] | None = None
    split_qkv: bool = False
    matricize: str | None = None
    memory_budget: float | int = 4

    def profiles(
        self, task_vectors: TaskVectors, views: Views | None, device: str, progress: Progress
    ) -> Profiles:
        """Make the evidence of these models."""
        return Profiles(
            task_vectors,
            views,
            split_qkv=self.split_qkv,
            matricize=self.matricize,
            memory_budget=self.memory_budget,
            device=device,
            progress=progress,
        )


@dataclass
class Clock:
    """How long each stage took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        logger.info("%s …", name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


@dataclass(frozen=True)
class Request:
    """Everything an analysis is asked for.

    Attributes:
        suite: what to analyse.
        metrics: name → metric.
        merges: name → merge method.
        predictors: name → scikit-learn regressor.
        profile: options of the evidence.
        store: folder of the store; in memory when None.
        on_error: `raise`, or `nan` to go on without a metric that fails.
        device: where the evidence is computed: `cpu`, `cuda`, or `auto`.
    """

    suite: TaskSuite | CheckpointSuite | TableSuite
    metrics: Mapping[str, Any]
    merges: Mapping[str, Any] = field(default_factory=dict)
    predictors: Mapping[str, Any] = field(default_factory=dict)
    profile: ProfileSettings = ProfileSettings()
    store: str | None = None
    on_error: str = "raise"
    device: str = "auto"


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
    clock, store = Clock(), Store(request.store)
    match request.suite:
        case TaskSuite() as suite:
            parts = _analyse_tasks(suite, request, store, progress, clock)
        case CheckpointSuite() as suite:
            parts = _analyse_checkpoints(suite, request, store, progress, clock)
        case TableSuite() as suite:
            parts = _analyse_table(suite, request, clock)
    run = {
        **(facts or {}),
        **parts.pop("facts", {}),
        "seconds": clock.seconds,
        "computed": dict(store.computed),
        "found": dict(store.found),
        **provenance(),
    }
    return Analysis(title=f"Mergeability of {request.suite.name}", run=run, **parts)


def save(analysis: Analysis, folder: Path) -> Path:
    """Write `pairs.csv`, `prediction.json`, `run.json` and `report.html`; return the report's path.

    All of them or none: they are written beside the folder's other files first and moved there together, in
    the place of an earlier run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".results-") as name:
        staging = Path(name)
        write_report(analysis, staging / "report.html")
        write_text(staging / "pairs.csv", analysis.pairs.to_csv(index=False))
        if not analysis.models.empty:
            write_text(staging / "models.csv", analysis.models.to_csv())
        (analysis.prediction or PredictionResult()).save(staging)
        write_text(staging / "run.json", json.dumps(analysis.run, indent=1, default=str) + "\n")
        for result in RESULTS:
            (folder / result).unlink(missing_ok=True)
            if (staging / result).exists():
                (staging / result).replace(folder / result)
    return folder / "report.html"


def _analyse_tasks(
    suite: TaskSuite, request: Request, store: Store, progress: Progress, clock: Clock
) -> dict[str, Any]:
    _require_models(suite.tasks, request)
    with clock.stage("loading models and images"):
        vectors = suite.load(store)
        heads = suite.heads()
        tests = {name: task.split("test") for name, task in suite.tasks.items()}
        encoder = suite.model.build().visual.eval()
        views = _views(suite, request.profile, encoder, heads)
    with clock.stage("measuring metrics"):
        profiles = request.profile.profiles(vectors, views, request.device, progress)
        table = measure(profiles, request.metrics, on_error=request.on_error)
    judge = Judge(encoder, suite.model.preprocess, _evaluated_as(suite.model), heads, tests, store)
    with clock.stage("evaluating models"):
        models = evaluate_models(vectors, judge)
        if suite.pixel_baseline:
            models["pixel_accuracy"] = _pixel_accuracies(suite, tests, store, progress)
    with clock.stage("merging and evaluating pairs"):
        outcomes = evaluate_pairs(vectors, request.merges, judge, models, progress)
    pairs = table.join(outcomes).reset_index()
    prediction = _predict(pairs, list(request.metrics), list(request.merges), request.predictors, clock)
    return {
        "models": models,
        "pairs": pairs,
        "metrics": list(request.metrics),
        "methods": list(request.merges),
        "alphas": {name: method.alpha for name, method in request.merges.items()},
        "prediction": prediction,
        "missing": _missing(table),
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
    with clock.stage("measuring metrics"):
        vectors = suite.load(store)
        profiles = request.profile.profiles(vectors, None, request.device, progress)
        table = measure(profiles, request.metrics, on_error=request.on_error)
    return {
        "models": pd.DataFrame(),
        "pairs": table.reset_index(),
        "metrics": list(request.metrics),
        "methods": [],
        "alphas": {},
        "prediction": None,
        "missing": [
            *_missing(table),
            "Nothing was merged, evaluated or predicted: suite=checkpoints has no images.",
        ],
        "facts": {"base_sha256": vectors.base_hash, "checkpoint_sha256": vectors.hashes},
    }


def _analyse_table(suite: TableSuite, request: Request, clock: Clock) -> dict[str, Any]:
    pairs = suite.read()
    names = list(suite.metrics or [name for name in request.metrics if name in pairs.columns])
    if not names:
        raise UserError(
            f"{suite.table} has none of the metrics asked for. Name its columns in suite.metrics=[…]."
        )
    methods = outcome_methods(pairs)
    prediction = _predict(pairs, names, methods, request.predictors, clock, suite.rows)
    return {
        "models": pd.DataFrame(),
        "pairs": pairs,
        "metrics": names,
        "methods": methods,
        "alphas": {},
        "prediction": prediction,
    }


def _require_models(models: Mapping[str, Any], request: Request) -> None:
    if len(models) < 2:
        raise UserError(f"Merging needs at least two models; the suite has {len(models)}.")
    if request.merges and request.predictors and len(models) < FEWEST_FOR_PREDICTION:
        raise UserError(
            f"Prediction needs at least {FEWEST_FOR_PREDICTION} tasks, the suite has {len(models)}. "
            "Add tasks, or leave prediction out with predictor=none."
        )


def _views(suite: TaskSuite, profile: ProfileSettings, encoder: Any, heads: Mapping[str, Tensor]) -> Views:
    samples = {
        name: calibration_sample(task, profile.samples, profile.seed) for name, task in suite.tasks.items()
    }
    prepared = {name: (suite.model.preprocess(one.images), one.labels) for name, one in samples.items()}
    return Views(
        encoder=encoder,
        heads=heads,
        calibration=prepared,
        pool=profile.pool,
        layer=profile.layer,
        configuration=suite.model.configuration,
    )


def _evaluated_as(model: ClipModel) -> dict[str, Any]:
    return {"model": model.configuration, "mean": list(model.mean), "std": list(model.std)}


def _pixel_accuracies(
    suite: TaskSuite, tests: Mapping[str, Images], store: Store, progress: Progress
) -> dict[str, float]:
    tasks = progress(suite.tasks.items(), "pixel baseline", len(suite.tasks))
    return {
        name: pixel_accuracy(task.split("train"), task.split("validation"), tests[name], store)
        for name, task in tasks
    }


def _predict(
    pairs: pd.DataFrame,
    metrics: list[str],
    methods: list[str],
    predictors: Mapping[str, Any],
    clock: Clock,
    rows: str = "per_method",
) -> PredictionResult | None:
    if not predictors or not methods:
        return None
    with clock.stage("predicting"):
        return evaluate_predictors(pairs, metrics, predictors, methods, rows=rows)


def _missing(table: pd.DataFrame) -> list[str]:
    """Say in sentences what has no value, and why."""
    return [*table.attrs.get("failures", ()), *table.attrs.get("undefined", ())]
