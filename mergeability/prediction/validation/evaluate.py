"""Fit every predictor in every fold and score its predictions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.files import atomic_file
from mergeability.prediction.csv_files import csv_text
from mergeability.prediction.pair_table import TARGETS, PairTable, chosen_methods, summarise_names
from mergeability.prediction.predictors.base import Predictor, traits
from mergeability.prediction.validation.folds import Fold, fit_folds, make_folds
from mergeability.prediction.validation.protocols import LeaveOneTaskOut, LeaveTwoTasksOut, SplitProtocol
from mergeability.prediction.validation.scores import (
    beyond_training_mean,
    interval_over_tasks,
    mean_absolute_error,
    mean_and_std,
    pearson_r,
    r2_over_training_mean,
    spearman_rho,
)
from mergeability.progress import Progress, no_progress
from mergeability.threads import one_blas_thread

# Column → one value per row.
Columns = dict[str, np.ndarray]

DEFAULT_PROTOCOLS: tuple[SplitProtocol, ...] = (LeaveOneTaskOut(), LeaveTwoTasksOut())

NO_OUTCOMES = "The table has no outcomes, so nothing was predicted."

_KEYS = ["protocol", "method", "target", "predictor"]
_PREDICTION_COLUMNS = [*_KEYS, "held_out", "task_a", "task_b", "measured", "predicted", "training_mean"]
_COEFFICIENT_COLUMNS = [*_KEYS, "held_out", "metric", "coefficient"]
_FOLD_COLUMNS = [*_KEYS, "held_out", "n_training", "n_validation", "r", "rho", "train_r", "mae"]


@dataclass(frozen=True)
class PredictionResult:
    """Hold predictions and their scores.

    Attributes:
        records: one entry per protocol, method, target and predictor, as in `prediction.json`; `None` for an undefined
            score.
        folds: one row per fold.
        predictions: one row per fold and validated pair.
        coefficients: one row per fold and coefficient, for protocols with few folds.
        notes: sentences about data left out and undefined scores.
        tables: the tables of `study_predictions`, by name.

    Examples:
        >>> from mergeability.prediction import Additive, evaluate_predictors
        >>> from mergeability.prediction.examples import example_pairs
        >>> result = evaluate_predictors(example_pairs(), ["cosine"], {"additive": Additive()}, targets=["norm_acc"])
        >>> [(one["protocol"], one["method"], one["n_folds"]) for one in result.records]
        [('loto', 'task_arithmetic', 6), ('loto', 'ties', 6), ('l2to', 'task_arithmetic', 15), ('l2to', 'ties', 15)]
        >>> result.of("l2to").predictions.shape
        (30, 10)
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    folds: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_FOLD_COLUMNS))
    predictions: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_PREDICTION_COLUMNS))
    coefficients: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COEFFICIENT_COLUMNS))
    notes: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `prediction.json`, `predictions.csv`, `coefficients.csv` and one file per table into a folder."""
        folder = Path(folder)
        with atomic_file(folder / "prediction.json") as path:
            path.write_text(json.dumps(self.records, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        frames = {"predictions": self.predictions, "coefficients": self.coefficients}
        for name, frame in frames.items():
            with atomic_file(folder / f"{name}.csv") as path:
                path.write_text(csv_text(frame), encoding="utf-8")
        for name, frame in self.tables.items():
            with atomic_file(folder / "prediction" / f"{name}.csv") as path:
                path.write_text(csv_text(frame), encoding="utf-8")

    def of(self, protocol: str) -> "PredictionResult":
        """Return the results of one protocol."""
        return PredictionResult(
            [record for record in self.records if record["protocol"] == protocol],
            self.folds[self.folds["protocol"] == protocol],
            self.predictions[self.predictions["protocol"] == protocol],
            self.coefficients[self.coefficients["protocol"] == protocol],
            self.notes,
            self.tables,
        )


def evaluate_predictors(
    table: pd.DataFrame | PairTable,
    metrics: Sequence[str],
    predictors: Mapping[str, Predictor],
    methods: Sequence[str] | None = None,
    targets: Sequence[str] = TARGETS,
    protocols: Sequence[SplitProtocol] = DEFAULT_PROTOCOLS,
    rows: str = "per_method",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    progress: Progress = no_progress,
) -> PredictionResult:
    """Fit each predictor in every fold for every outcome, and score it on the validation pairs.

    A predictor is any scikit-learn regressor; `Predictor` lists the optional attributes. Inner folds follow the same
    protocol on the training rows. Protocols with many folds are used only for predictors with a closed form.

    Args:
        table: one row per pair; a data frame is checked first.
        metrics: the columns that may be features.
        predictors: name → regressor.
        methods: merge methods; those the table has outcomes of when None.
        targets: outcomes of each method, `norm_acc` or `acc`.
        protocols: splits into training and validation pairs.
        rows: "per_method", or "complete": only pairs with an outcome for every method.
        ranges: metric → its lowest and highest value.
        progress: wraps the loop over predictors.

    Returns:
        The scores. Without any outcome column the result is empty, with a note.

    Raises:
        UserError: for the reasons given in `PairTable.validate`, or `rows` is neither of the two.

    Examples:
        >>> from mergeability.prediction import Additive, LeaveOneTaskOut, Ridge, evaluate_predictors
        >>> from mergeability.prediction.examples import example_pairs
        >>> result = evaluate_predictors(
        ...     example_pairs(),
        ...     ["cosine", "distance"],
        ...     {"additive": Additive(), "ridge": Ridge(strengths=(0.1, 1, 10))},
        ...     methods=["ties"],
        ...     targets=["norm_acc"],
        ...     protocols=[LeaveOneTaskOut()],
        ... )
        >>> {one["predictor"]: round(one["r_mean"], 2) for one in result.records}
        {'additive': 0.63, 'ridge': 0.41}
    """
    if rows not in ("per_method", "complete"):
        raise UserError(f"Expected rows='per_method' or rows='complete', got {rows!r}.")
    methods = chosen_methods(table, methods, targets)
    if not methods:
        return PredictionResult(notes=[NO_OUTCOMES])
    table = PairTable.of(table, metrics, methods, targets, ranges)
    notes = list(table.notes)
    parts = []
    # One thread, because for thousands of small problems threads would wait longer than they compute.
    with one_blas_thread():
        for protocol in protocols:
            made = make_folds(table, methods, targets, protocol, rows == "complete")
            # Excluded pairs are the same for all protocols, and constant metrics are noted once, for the first
            # protocol.
            notes += [note for note in made.notes if protocol is protocols[0]]
            chosen = [
                name
                for name, one in predictors.items()
                if made.folds and (not protocol.many or traits(one).closed_form)
            ]
            steps = progress(chosen, f"predicting, {protocol.situation}", len(chosen))
            parts += [_evaluate_one(name, predictors[name], made.folds, protocol) for name in steps]
    outcomes = [f"{target}_{method}" for target in targets for method in methods]
    absent = [name for name in outcomes if name not in table.frame.columns]
    if absent:
        notes.append(f"{summarise_names(absent)}: no such column exists, so nothing was predicted.")
    return _combine(parts, notes)


def _evaluate_one(
    name: str, predictor: Predictor, folds: Sequence[Fold], protocol: SplitProtocol
) -> PredictionResult:
    by_outcome: dict[tuple[str, str], list[tuple[Fold, Predictor]]] = {}
    for fold, model in zip(folds, fit_folds(predictor, folds), strict=True):
        by_outcome.setdefault((fold.method, fold.target), []).append((fold, model))
    scored = [_score(name, traits(predictor).inputs, protocol, fits) for fits in by_outcome.values()]
    # One frame for all outcomes, because creating one for each would take longer than the scores.
    of_folds = _stacked([one.folds for one in scored], _FOLD_COLUMNS)
    return PredictionResult(
        [one.record for one in scored],
        of_folds,
        _stacked([one.predictions for one in scored], _PREDICTION_COLUMNS),
        _stacked([one.coefficients for one in scored], _COEFFICIENT_COLUMNS),
        [] if protocol.many else _undefined_notes(name, of_folds),
    )


def _undefined_notes(name: str, folds: pd.DataFrame) -> list[str]:
    """List the folds without a correlation, in one sentence for all outcomes with the same folds."""
    outcomes_by: dict[str, list[str]] = {}
    for (target, method), rows in folds.groupby(["target", "method"], sort=False):
        undefined = rows.loc[rows["r"].isna(), "held_out"].tolist()
        if undefined:
            where = "every fold" if len(undefined) == len(rows) else f"fold {summarise_names(undefined)}"
            outcomes_by.setdefault(where, []).append(f"{target}_{method}")
    return [
        f"{name} has no correlation in {where} of {summarise_names(outcomes)}:"
        " predictions or outcomes are constant there, or pairs too few."
        for where, outcomes in outcomes_by.items()
    ]


@dataclass(frozen=True)
class _Scored:
    """One predictor's scores for one method and target: its record, and columns of the frames."""

    record: dict[str, Any]
    folds: Columns
    predictions: Columns
    coefficients: Columns


def _score(
    name: str, inputs: str, protocol: SplitProtocol, fits: Sequence[tuple[Fold, Predictor]]
) -> _Scored:
    """Score one predictor's folds of one method and target."""
    first = fits[0][0]
    own = {"protocol": protocol.name, "method": first.method, "target": first.target, "predictor": name}
    fold_rows, predicted_rows, coefficients = [], [], []
    for fold, model in fits:
        predicted = np.asarray(model.predict(fold.shared.features(inputs)), dtype=np.float64)
        fold_rows.append(_fold_scores(fold, predicted))
        predicted_rows.append(_validated_pairs(fold, predicted))
        weights = getattr(model, "coef_", None)
        if weights is not None and not protocol.many:
            coefficients.append((fold.split.label, np.ravel(weights)))
    folds = {key: np.array([row[key] for row in fold_rows]) for key in fold_rows[0]}
    predictions = {key: np.concatenate([row[key] for row in predicted_rows]) for key in predicted_rows[0]}
    return _Scored(
        _record(own, protocol, len(first.outcome), folds, predictions),
        _labelled(own, folds),
        _labelled(own, predictions),
        _labelled(own, _coefficient_columns(first.feature_names(inputs), coefficients)),
    )


def _labelled(own: Mapping[str, str], columns: Columns) -> Columns:
    """Add the values common to all rows to their columns."""
    count = len(next(iter(columns.values())))
    return {**{key: np.full(count, value, dtype=object) for key, value in own.items()}, **columns}


def _stacked(parts: Sequence[Columns], names: Sequence[str]) -> pd.DataFrame:
    """Put the columns of all outcomes below each other; an empty frame where there is no row."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return pd.DataFrame(columns) if len(columns[names[0]]) else pd.DataFrame(columns=list(names))


def _fold_scores(fold: Fold, predicted: np.ndarray) -> dict[str, Any]:
    measured, v, t = fold.outcome, fold.split.validation, fold.split.training
    return {
        "held_out": fold.split.label,
        "n_training": len(t),
        "n_validation": len(v),
        "r": pearson_r(predicted[v], measured[v]),
        "rho": spearman_rho(predicted[v], measured[v]),
        "train_r": pearson_r(predicted[t], measured[t]),
        "mae": mean_absolute_error(predicted[v], measured[v]),
    }


def _validated_pairs(fold: Fold, predicted: np.ndarray) -> dict[str, np.ndarray]:
    v = fold.split.validation
    ends = fold.shared.rows.ends[v]
    return {
        "held_out": np.full(len(v), fold.split.label, dtype=object),
        "task_a": ends[:, 0],
        "task_b": ends[:, 1],
        "measured": fold.outcome[v],
        "predicted": predicted[v],
        "training_mean": np.full(len(v), fold.training_outcome.mean()),
    }


def _coefficient_columns(names: Sequence[str], coefficients: Sequence[tuple[str, np.ndarray]]) -> Columns:
    if not coefficients:
        return {name: np.empty(0, dtype=object) for name in ("held_out", "metric", "coefficient")}
    labels = np.array([label for label, _ in coefficients], dtype=object)
    return {
        "held_out": np.repeat(labels, len(names)),
        "metric": np.array(list(names) * len(coefficients), dtype=object),
        "coefficient": np.concatenate([values for _, values in coefficients]),
    }


def _record(
    own: Mapping[str, str],
    protocol: SplitProtocol,
    n_pairs: int,
    folds: Columns,
    predictions: Columns,
) -> dict[str, Any]:
    measured, predicted, training_mean = (
        predictions[column] for column in ("measured", "predicted", "training_mean")
    )
    r_mean, r_std = mean_and_std(folds["r"])
    ends = np.stack([predictions["task_a"], predictions["task_b"]], axis=1)
    low, high = interval_over_tasks(predicted, measured, ends)
    beyond, measured_beyond = beyond_training_mean(predicted, measured, training_mean)
    beyond_low, beyond_high = interval_over_tasks(beyond, measured_beyond, ends)
    scores = {
        "r_mean": r_mean,
        "r_std": r_std,
        "rho_mean": mean_and_std(folds["rho"])[0],
        "train_r_mean": mean_and_std(folds["train_r"])[0],
        "pooled_r": pearson_r(predicted, measured),
        "pooled_r_low": low,
        "pooled_r_high": high,
        "r_beyond_mean": pearson_r(beyond, measured_beyond),
        "r_beyond_mean_low": beyond_low,
        "r_beyond_mean_high": beyond_high,
        "mae": mean_absolute_error(predicted, measured),
        "r2_over_training_mean": r2_over_training_mean(predicted, measured, training_mean),
    }
    return {
        "method": own["method"],
        "predictor": own["predictor"],
        "protocol": protocol.name,
        "situation": protocol.situation,
        "target": own["target"],
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
        "n_folds": len(folds["r"]),
        "n_pairs": n_pairs,
        "n_undefined": int(np.isnan(folds["r"]).sum()),
    }


def _combine(parts: Sequence[PredictionResult], notes: Sequence[str]) -> PredictionResult:
    def stack(name: str) -> pd.DataFrame:
        frames = [frame for frame in (getattr(part, name) for part in parts) if len(frame)]
        return pd.concat(frames, ignore_index=True) if frames else getattr(PredictionResult(), name)

    return PredictionResult(
        [record for part in parts for record in part.records],
        stack("folds"),
        stack("predictions"),
        stack("coefficients"),
        [*notes, *(note for part in parts for note in part.notes)],
    )
