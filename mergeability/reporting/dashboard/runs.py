"""Read one analysis from its folder: its identity, pairs and predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mergeability.errors import UserError, one_line
from mergeability.files import digest, read_json, read_object
from mergeability.prediction.csv_files import read_csv
from mergeability.prediction.pair_table import TARGETS, outcome_methods
from mergeability.prediction.validation.folds import TASK_PREFIX
from mergeability.prediction.validation.protocols import KNOWN_PARTNER

SCORES = ["protocol", "target", "method", "predictor", "r"]
PREDICTIONS = ["protocol", "method", "predictor", "task_a", "task_b", "predicted"]
COEFFICIENTS = ["protocol", "method", "predictor", "metric", "coefficient"]
# Settings that an outcome depends on, besides the training of the models and the pairs.
_ALPHA = ("alpha", "alpha_grid", "validation_images")


@dataclass(frozen=True)
class Run:
    """Hold the identity, pairs and predictions of a finished analysis.

    Attributes:
        folder: its path.
        facts: `suite`, `model`, `penalty`, `strength`, `seed`, `variant`; None if it does not apply to the run.
        settings: further settings that affect an outcome: setting → its value as text.
        identities: method → a digest, equal for runs that evaluated the same merges by it; "" → one for the metrics.
        finished_at: ISO time, empty if unknown.
        seconds: total time of its stages, NaN if unknown.
        methods: merge methods with outcomes.
        metrics: columns of `pairs` that are metrics.
        pairs: one row per pair: `task_a`, `task_b`, metrics and outcomes `<target>_<method>`.
        own: task → the fine-tuned model's accuracy on it, in [0, 1].
        scores: one row per protocol, target, method and predictor: the correlation `r` of its validation.
        predictions: one row per protocol, method, predictor and pair: the predicted outcome, mean over the folds that
            left out one of the pair's tasks.
        coefficients: one row per protocol, method, predictor and metric: the mean over folds.
        target: the outcome of `predictions` and `coefficients`.
        report: whether there is a `report.html`.
    """

    folder: Path
    facts: Mapping[str, Any]
    settings: Mapping[str, str]
    identities: Mapping[str, str]
    finished_at: str
    seconds: float
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    pairs: pd.DataFrame
    own: Mapping[str, float]
    scores: pd.DataFrame
    predictions: pd.DataFrame
    coefficients: pd.DataFrame
    target: str
    report: bool

    @property
    def tasks(self) -> list[str]:
        """The tasks of all models and pairs."""
        ends = [str(task) for name in ("task_a", "task_b") for task in self.pairs[name]]
        return list(dict.fromkeys([*self.own, *ends]))


def read_run(folder: Path) -> Run:
    """Read an analysis from its run folder.

    Args:
        folder: of the run.

    Returns:
        The analysis.

    Raises:
        UserError: a file is missing, damaged or of another kind.
    """
    record = read_object(folder / "run.json") or {}
    config = _mapping(record.get("config"))
    if not (folder / "pairs.csv").is_file():
        raise UserError(f"{folder} contains a run.json but no pairs.csv.")
    pairs = _table(folder / "pairs.csv", ["task_a", "task_b"])
    if pairs[["task_a", "task_b"]].isna().to_numpy().any():
        raise UserError(f"{folder / 'pairs.csv'} contains a row without a task.")
    methods = tuple(outcome_methods(pairs))
    outcomes = [f"{t}_{m}" for t in TARGETS for m in methods if f"{t}_{m}" in pairs.columns]
    metrics = [name for name in _mapping(config.get("metric")) if name in pairs.columns]
    target = next((t for t in TARGETS if any(name.startswith(f"{t}_") for name in outcomes)), TARGETS[0])
    kept = _numbers(
        pairs[["task_a", "task_b", *dict.fromkeys([*metrics, *outcomes])]], folder / "pairs.csv", 2
    )
    facts, settings = _facts(config), _settings(config)
    tasks = sorted(f"{a}\n{b}" for a, b in zip(pairs["task_a"], pairs["task_b"], strict=True))
    seconds = [value for value in _mapping(record.get("seconds")).values() if isinstance(value, int | float)]
    return Run(
        folder=folder,
        facts=facts,
        settings=settings,
        identities=_identities(
            [facts, tasks, _mapping(record.get("checkpoint_sha256"))], settings, methods, metrics
        ),
        finished_at=str(record.get("finished_at") or ""),
        seconds=float(sum(seconds)) if seconds else float("nan"),
        methods=methods,
        metrics=tuple(metrics),
        pairs=kept,
        own=_own(folder / "models.csv"),
        scores=_scores(folder / "prediction.json"),
        predictions=_predictions(folder / "predictions.csv", target),
        coefficients=_coefficients(folder / "coefficients.csv", target),
        target=target,
        report=(folder / "report.html").is_file(),
    )


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Say which run it is; settings that a suite does not use, such as a penalty of bare checkpoints, are None."""
    suite, reg = _mapping(config.get("suite")), _mapping(config.get("reg"))
    model, strength = _mapping(config.get("model")).get("name"), _number(reg.get("lambda"))
    trained = "trained" in suite and strength is not None
    return {
        "suite": _text(suite.get("name")),
        "model": _text(model) if "model" in suite or trained else None,
        "penalty": None if not trained else "none" if strength == 0 else _text(reg.get("name")),
        "strength": strength if trained else None,
        "seed": _number(config.get("seed")) if trained else None,
        "variant": _text(config.get("variant")),
    }


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what an outcome depends on, besides facts and pairs; named as on the command line."""
    tuned = _ALPHA if isinstance(config.get("alpha"), str | list) else _ALPHA[:1]
    merge, profile = _mapping(config.get("merge")), _mapping(config.get("profile"))
    nested = {
        **{name: config.get(name) for name in (*tuned, "test_images", "arity")},
        **{f"merge.{name}": options for name, options in merge.items()},
        **{f"profile.{name}": value for name, value in profile.items() if name != "memory_budget"},
    }
    return {name: _written(value) for name, value in _flat(nested) if not name.endswith("_target_")}


def _identities(
    models: Any, settings: Mapping[str, str], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, str]:
    """Hash what each method's outcomes depend on, and what the metrics do."""
    shared = {name: value for name, value in settings.items() if not name.startswith("merge.")}
    found = {"": digest([models, shared, sorted(metrics)])}
    for method in methods:
        # A suffix, such as that of a tuned scale, belongs to the outcome and not to the options.
        own = {
            name: value
            for name, value in settings.items()
            if name.startswith("merge.") and f"{method}_".startswith(f"{name.split('.')[1]}_")
        }
        found[method] = digest([models, shared, own, method])
    return found


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, Mapping) else [("", value)]
        found += [(f"{name}.{rest}" if rest else str(name), one) for rest, one in inner]
    return found


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _own(path: Path) -> dict[str, float]:
    if not path.is_file():
        return {}
    models = _table(path, ["task"])
    if "finetuned_accuracy" not in models.columns:
        return {str(task): float("nan") for task in models["task"]}
    models = _numbers(models[["task", "finetuned_accuracy"]], path, 1)
    return {str(task): float(value) for task, value in models.itertuples(index=False, name=None)}


def _scores(path: Path) -> pd.DataFrame:
    """Read the correlations: means over folds, or over all pairs beyond the mean where a fold is a single pair."""
    records = read_json(path)
    if records is None:
        return pd.DataFrame(columns=SCORES)
    names = {"protocol", "situation", "target", "method", "predictor"}
    if not isinstance(records, list) or not all(
        isinstance(one, dict) and names <= set(one) for one in records
    ):
        raise UserError(
            f"Expected a list of records in {path}, each with the fields {', '.join(sorted(names))},"
            " got something else."
        )
    rows = [
        [*(str(one[name]) for name in SCORES[:-1]), one.get(_correlation(one["situation"]))]
        for one in records
    ]
    return _numbers(pd.DataFrame(rows, columns=SCORES), path, 4)


def _correlation(situation: Any) -> str:
    return "r_mean" if situation == KNOWN_PARTNER else "r_beyond_mean"


def _predictions(path: Path, target: str) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=PREDICTIONS)
    table = _table(path, [*PREDICTIONS[:-1], "target"], [*PREDICTIONS, "target"])
    return _mean_over_folds(table, path, target, PREDICTIONS)


def _coefficients(path: Path, target: str) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=COEFFICIENTS)
    table = _table(path, [*COEFFICIENTS[:-1], "target"], [*COEFFICIENTS, "target"])
    metrics = table[~table["metric"].astype(str).str.startswith(TASK_PREFIX)]
    return _mean_over_folds(metrics, path, target, COEFFICIENTS)


def _mean_over_folds(table: pd.DataFrame, path: Path, target: str, columns: Sequence[str]) -> pd.DataFrame:
    *keys, value = columns
    rows = _numbers(table.loc[table["target"] == target, list(columns)], path, len(keys))
    return rows.groupby(keys, sort=False, observed=True)[value].mean().reset_index()


def _table(path: Path, texts: Sequence[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table whose text columns may hold names such as NA.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        # Only an empty cell is undefined; `NA` may be a task.
        frame = read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # of pandas: not a table, or not UTF-8
        raise UserError(f"{path} is not a table ({one_line(error)}).") from error
    missing = [name for name in columns or texts if name not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}.")
    return frame if columns is None else frame[list(columns)]


def _numbers(frame: pd.DataFrame, path: Path, texts: int) -> pd.DataFrame:
    """Turn all columns behind the first `texts` into numbers.

    Raises:
        UserError: one holds text.
    """
    try:
        return frame.astype(dict.fromkeys(frame.columns[texts:], float))
    except (ValueError, TypeError) as error:
        raise UserError(f"Expected numbers in {path}, got something else ({error}).") from error


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
