"""The analysis, end to end: profile → measure → merge → evaluate → predict → report.

What is analysed is one of three suites: tasks whose models `train.py` made (everything), bare checkpoints from
one base (the metrics of weight space), or a ready table of pairs (prediction).
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from mergeability import checkpoints
from mergeability.data.calibration import calibration_sample
from mergeability.data.tasks import Images, Task
from mergeability.errors import UserError
from mergeability.evaluation.accuracy import Judge, pixel_accuracy
from mergeability.evaluation.merge_quality import describe, evaluate_models, evaluate_pairs
from mergeability.metrics.measure import measure
from mergeability.models.base import WEIGHTS
from mergeability.models.clip import ClipModel
from mergeability.prediction import PredictionResult, evaluate_predictors
from mergeability.prediction.table import outcome_methods
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.provenance import provenance
from mergeability.reporting.report import write_report
from mergeability.reporting.tables import Analysis
from mergeability.store import Store, write_text
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
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class TaskSuite:
    """Tasks, and where their fine-tuned models lie.

    Attributes:
        name: of the suite.
        tasks: name → task.
        model: the CLIP whose visual encoder was fine-tuned.
        checkpoints: folder of all checkpoints of that model.
        trained: the folder below it that holds one folder a task: `<penalty>-<λ>/seed-<seed>`.
        train_command: what makes missing models, up to `task=`.
        pixel_baseline: whether to fit logistic regression on raw pixels for comparison.
    """

    name: str
    tasks: Mapping[str, Task]
    model: ClipModel
    checkpoints: str
    trained: str
    train_command: str
    pixel_baseline: bool = False

    def folder(self, task: str) -> Path:
        """Say where a task's model lies."""
        return Path(self.checkpoints) / self.trained / task

    @property
    def base(self) -> Path:
        """The base model's weights."""
        return Path(self.checkpoints) / "base" / WEIGHTS

    def load(self, store: Store) -> TaskVectors:
        """Open the models' task vectors.

        Raises:
            UserError: models are missing (names the command that makes them), or changed since training.
        """
        found = {task: checkpoints.read_card(self.folder(task)) for task in self.tasks}
        cards = {task: card for task, card in found.items() if card is not None}
        missing = [task for task in self.tasks if task not in cards or not self._files_exist(task)]
        if missing:
            raise UserError(
                f"No checkpoint for {', '.join(repr(task) for task in missing)} with {self.trained}. "
                f"Run: {self.train_command} task={','.join(missing)}"
            )
        models = {task: self.folder(task) / "model.safetensors" for task in self.tasks}
        vectors = TaskVectors.load(models, base=self.base, store=store)
        for task, card in cards.items():
            head = checkpoints.file_hash(self.folder(task) / "head.safetensors")
            names = card["settings"].get("task", {}).get("class_names", self.tasks[task].class_names)
            differing = {
                "the base it was fine-tuned from": card["base_sha256"] != vectors.base_hash,
                "model.safetensors": card["sha256"] != vectors.hashes[task],
                "head.safetensors": card["head_sha256"] != head,
                "the list of class names": list(names) != list(self.tasks[task].class_names),
            }
            changed = [what for what, differs in differing.items() if differs]
            if changed:
                raise UserError(
                    f"Since the model in {self.folder(task)} was trained, {' and '.join(changed)} changed. "
                    f"Run: {self.train_command} task={task} overwrite=true"
                )
        return vectors

    def _files_exist(self, task: str) -> bool:
        return all((self.folder(task) / f"{name}.safetensors").is_file() for name in ("model", "head"))

    def heads(self) -> dict[str, Tensor]:
        """Read the frozen heads stored beside the models."""
        return {name: checkpoints.load(self.folder(name) / "head.safetensors")["head"] for name in self.tasks}


@dataclass(frozen=True)
class CheckpointSuite:
    """Any models fine-tuned from one base, without data.

    Attributes:
        name: of the suite.
        base: the base's state dict, a safetensors file.
        models: name → a fine-tuned state dict.
    """

    name: str
    base: str
    models: Mapping[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping) or not all(
            isinstance(path, str) for path in self.models.values()
        ):
            raise UserError("suite.models names files: 'suite.models={a: a.safetensors, b: b.safetensors}'.")

    def load(self, store: Store) -> TaskVectors:
        """Open the task vectors."""
        return TaskVectors.load(
            {str(name): path for name, path in self.models.items()}, base=self.base, store=store
        )


@dataclass(frozen=True)
class TableSuite:
    """A ready table of pairs: metrics and outcomes.

    Attributes:
        name: of the suite.
        table: a CSV or Parquet file with `task_a`, `task_b`, metric and outcome columns.
        metrics: the columns that are metrics; those chosen by `metric=` that the table has, when None.
        rows: `per_method` or `complete`.
    """

    name: str
    table: str
    metrics: Sequence[str] | None = None
    rows: str = "per_method"

    def read(self) -> pd.DataFrame:
        """Read the table.

        Raises:
            UserError: there is no such file, or it is not such a table.
        """
        path = Path(self.table).expanduser()
        if not path.is_file():
            raise UserError(f"No table at {path}. Give suite.table=<a CSV or Parquet file>.")
        try:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read as a table: {error}") from error
        except ImportError as error:
            raise UserError("Parquet needs pyarrow: install the extra 'data', or give a CSV file.") from error
        absent = [name for name in ("task_a", "task_b", *(self.metrics or ())) if name not in table.columns]
        if absent:
            raise UserError(f"{path} has no column {', '.join(absent)}. It has: {', '.join(table.columns)}.")
        return table


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a pair table, names of tasks as text whatever they look like: a task may be called 1, or NA."""
    names = ("task_a", "task_b")
    others = [column for column in pd.read_csv(path, nrows=0).columns if column not in names]
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(names, str),
        keep_default_na=False,
        na_values={column: ["", "NA", "NaN", "nan", "null", "None"] for column in others},
    )


@dataclass(frozen=True)
class ProfileSettings:
    """Options of the evidence.

    Attributes:
        samples: calibration images of each task.
        seed: of their choice.
        layer: dotted name of the layer whose activations are averaged; the last block when None.
        pool: the tasks whose images make the pool of the activations; all of the suite when None.
    """

    samples: int = 10
    seed: int = 42
    layer: str | None = None
    pool: Sequence[str] | None = None


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
    """

    suite: TaskSuite | CheckpointSuite | TableSuite
    metrics: Mapping[str, Any]
    merges: Mapping[str, Any] = field(default_factory=dict)
    predictors: Mapping[str, Any] = field(default_factory=dict)
    profile: ProfileSettings = ProfileSettings()
    store: str | None = None
    on_error: str = "raise"


def analyse(request: Request, progress: Progress, facts: Mapping[str, Any] | None = None) -> Analysis:
    """Run every stage that the suite has data for.

    Args:
        request: what to do.
        progress: wraps long loops: (items, description, total) → the items.
        facts: more entries for `run.json`, such as the configuration.

    Raises:
        UserError: something is missing or wrong; says what to do.
    """
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
        table = measure(
            Profiles(vectors, views, progress=progress), request.metrics, on_error=request.on_error
        )
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
        table = measure(Profiles(vectors, progress=progress), request.metrics, on_error=request.on_error)
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
