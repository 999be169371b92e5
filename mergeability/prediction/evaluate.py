"""Fit every predictor in every fold and score what it foresees."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from mergeability.errors import UserError
from mergeability.prediction.protocols import LeaveOneTaskOut, SplitProtocol, task_folds
from mergeability.prediction.scaling import RangeScaler
from mergeability.prediction.scores import (
    mean_absolute_error,
    mean_and_std,
    pearson_r,
    r2_over_training_mean,
    spearman_rho,
)
from mergeability.prediction.table import TARGETS, PairRows, PairTable, outcome_methods, summarise_names
from mergeability.store import atomic_file

TASK_PREFIX = "task="
"""Coefficients of task effects carry this prefix, so that no metric's name can collide with a task's."""

_PREDICTION_COLUMNS = [
    "method",
    "target",
    "predictor",
    "held_out",
    "task_a",
    "task_b",
    "measured",
    "predicted",
]
_COEFFICIENT_COLUMNS = ["method", "target", "predictor", "held_out", "metric", "coefficient"]
_FOLD_COLUMNS = [
    "method",
    "target",
    "predictor",
    "held_out",
    "n_training",
    "n_validation",
    "r",
    "rho",
    "train_r",
]


@dataclass(frozen=True)
class PredictionResult:
    """What was foreseen: flat records as in `prediction.json`, and the frames behind them.

    `records` hold one entry a method, target and predictor, `None` where a score is undefined. `folds`,
    `predictions` and `coefficients` have one row a fold, a validated pair and a fold's coefficient; `notes`
    are sentences about what was left out or is undefined.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    folds: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_FOLD_COLUMNS))
    predictions: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_PREDICTION_COLUMNS))
    coefficients: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_COEFFICIENT_COLUMNS))
    notes: list[str] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `prediction.json`, `predictions.csv` and `coefficients.csv` into a folder."""
        with atomic_file(Path(folder) / "prediction.json") as path:
            path.write_text(json.dumps(self.records, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for name in ("predictions", "coefficients"):
            with atomic_file(Path(folder) / f"{name}.csv") as path:
                getattr(self, name).to_csv(path, index=False)


@dataclass(frozen=True)
class Fold:
    """One training fold of one method and target, ready to fit: metrics scaled by its own training rows."""

    method: str
    target: str
    held_out: str
    rows: PairRows
    training: np.ndarray
    validation: np.ndarray
    scaled: np.ndarray
    constant: tuple[str, ...]

    @property
    def training_outcome(self) -> np.ndarray:
        """The outcomes a fit may see."""
        return self.rows.outcome[self.training]

    def features(self, inputs: str) -> np.ndarray:
        """Give all rows' columns that a predictor asks for: metrics, tasks (incidence columns), or both."""
        choices = {
            "metrics": [self.scaled],
            "tasks": [self.rows.incidence],
            "both": [self.scaled, self.rows.incidence],
        }
        if inputs not in choices:
            raise UserError(f"A predictor's inputs must be one of {', '.join(choices)}, not {inputs!r}.")
        return np.hstack(choices[inputs])

    def feature_names(self, inputs: str) -> list[str]:
        """Name the columns of `features`."""
        tasks = [f"{TASK_PREFIX}{task}" for task in self.rows.tasks]
        return {"metrics": list(self.rows.metrics), "tasks": tasks, "both": [*self.rows.metrics, *tasks]}[
            inputs
        ]


def evaluate_predictors(
    table: pd.DataFrame,
    metrics: Sequence[str],
    predictors: Mapping[str, Any],
    methods: Sequence[str] | None = None,
    targets: Sequence[str] = TARGETS,
    protocol: SplitProtocol | None = None,
    rows: str = "per_method",
) -> PredictionResult:
    """Fit each predictor on each fold of each method's outcomes, and score it on the pairs left out.

    A predictor is any scikit-learn regressor. Three optional traits are recognised: a class attribute
    `inputs` ("metrics" by default, "tasks" or "both"), a `fit` argument `folds` that takes the inner
    leave-one-task-out of the training rows as (training, validation) arrays, and `fit_many`, which fits all
    folds at once. `rows` is "per_method" or "complete" (only pairs with an outcome for every method).

    Without any outcome column the result is empty, with a note.
    Raises UserError as `PairTable.validate` does.
    """
    protocol = protocol or LeaveOneTaskOut()
    if rows not in ("per_method", "complete"):
        raise UserError(f"rows must be per_method or complete, not {rows!r}.")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UserError(f"A target must be one of {', '.join(TARGETS)}, not {summarise_names(unknown)}.")
    methods = outcome_methods(table, targets) if methods is None else list(methods)
    if not methods:
        return PredictionResult(notes=["The table has no outcomes, so nothing was predicted."])
    outcomes = [f"{target}_{method}" for target in targets for method in methods]
    absent = [outcome for outcome in outcomes if outcome not in table.columns]
    checked = PairTable.validate(table, metrics, [outcome for outcome in outcomes if outcome not in absent])
    folds, notes = _folds(checked, methods, targets, protocol, rows == "complete")
    if absent:
        notes.append(f"{summarise_names(absent)}: no such column, so nothing was predicted.")
    parts = [_evaluate_one(name, predictor, folds, protocol.name) for name, predictor in predictors.items()]
    return _combine(parts, [*checked.notes, *notes])


def _folds(
    table: PairTable, methods: Sequence[str], targets: Sequence[str], protocol: SplitProtocol, complete: bool
) -> tuple[list[Fold], list[str]]:
    folds: list[Fold] = []
    left_out_by: dict[tuple[str, ...], list[str]] = {}
    constant_in: dict[str, set[str]] = {}
    notes: list[str] = []
    for target in targets:
        known = [method for method in methods if f"{target}_{method}" in table.frame.columns]
        outcomes = [f"{target}_{method}" for method in known]
        for method, outcome in zip(known, outcomes, strict=True):
            rows, left_out = table.rows(outcome, outcomes if complete else ())
            if left_out:
                left_out_by.setdefault(tuple(left_out), []).append(outcome)
            own = [_fold(method, target, rows, *split) for split in protocol.split(rows)]
            if not own:
                notes.append(
                    f"{outcome}: {len(rows.outcome)} usable pairs allow no fold, so nothing was predicted."
                )
            for fold in own:
                for metric in fold.constant:
                    constant_in.setdefault(metric, set()).add(fold.held_out)
            folds += own
    for pairs, outcomes in left_out_by.items():
        count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
        notes.append(
            f"{summarise_names(outcomes)}: {count} left out for an empty cell ({summarise_names(pairs)})."
        )
    for metric, tasks in constant_in.items():
        notes.append(
            f"{metric} is constant where {summarise_names(sorted(tasks))} is held out and has weight 0 there."
        )
    return folds, notes


def _fold(
    method: str, target: str, rows: PairRows, held_out: str, training: np.ndarray, validation: np.ndarray
) -> Fold:
    scaler = RangeScaler().fit(rows.features[training])
    constant = tuple(name for name, flat in zip(rows.metrics, scaler.constant_, strict=True) if flat)
    return Fold(
        method, target, held_out, rows, training, validation, scaler.transform(rows.features), constant
    )


def _fit(predictor: Any, inputs: str, folds: Sequence[Fold]) -> list[Any]:
    copies: list[Any] = [clone(predictor) for _ in folds]
    problems = [
        (
            fold.features(inputs)[fold.training],
            fold.training_outcome,
            [
                (np.flatnonzero(~out), np.flatnonzero(out))
                for out in task_folds(fold.rows.incidence[fold.training])
            ],
        )
        for fold in folds
    ]
    if hasattr(predictor, "fit_many"):
        return predictor.fit_many(problems)
    nested = has_fit_parameter(predictor, "folds")
    for model, (X, y, inner) in zip(copies, problems, strict=True):
        model.fit(X, y, **({"folds": inner} if nested else {}))
    return copies


def _evaluate_one(name: str, predictor: Any, folds: Sequence[Fold], protocol: str) -> PredictionResult:
    inputs = getattr(predictor, "inputs", "metrics")
    fitted = _fit(predictor, inputs, folds) if folds else []
    by_outcome: dict[tuple[str, str], list[tuple[Fold, Any]]] = {}
    for fold, model in zip(folds, fitted, strict=True):
        by_outcome.setdefault((fold.method, fold.target), []).append((fold, model))
    scored = _combine([_score(name, inputs, protocol, pairs) for pairs in by_outcome.values()], [])
    return replace(scored, notes=_undefined_notes(name, scored.folds))


def _undefined_notes(name: str, folds: pd.DataFrame) -> list[str]:
    """Name the folds without a correlation, one sentence for all outcomes that lack the same ones."""
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


def _score(name: str, inputs: str, protocol: str, fits: Sequence[tuple[Fold, Any]]) -> PredictionResult:
    """Score one predictor's folds of one method and target."""
    fold_rows, predictions, coefficients = [], [], []
    for fold, model in fits:
        own = {"method": fold.method, "target": fold.target, "predictor": name, "held_out": fold.held_out}
        predicted = np.asarray(model.predict(fold.features(inputs)), dtype=np.float64)
        fold_rows.append(own | _fold_scores(fold, predicted))
        predictions.append(_validated_pairs(own, fold, predicted))
        if hasattr(model, "coef_"):
            named = {"metric": fold.feature_names(inputs), "coefficient": np.ravel(model.coef_)}
            coefficients.append(pd.DataFrame(own | named))
    fold_frame, predicted_frame = pd.DataFrame(fold_rows), pd.concat(predictions, ignore_index=True)
    record = _record(protocol, fits[0][0], fold_frame, predicted_frame)
    del predicted_frame["training_mean"]
    return PredictionResult(
        [record],
        fold_frame,
        predicted_frame,
        pd.concat(coefficients, ignore_index=True)
        if coefficients
        else pd.DataFrame(columns=_COEFFICIENT_COLUMNS),
    )


def _fold_scores(fold: Fold, predicted: np.ndarray) -> dict[str, Any]:
    measured, v, t = fold.rows.outcome, fold.validation, fold.training
    return {
        "n_training": len(t),
        "n_validation": len(v),
        "r": pearson_r(predicted[v], measured[v]),
        "rho": spearman_rho(predicted[v], measured[v]),
        "train_r": pearson_r(predicted[t], measured[t]),
        "mae": mean_absolute_error(predicted[v], measured[v]),
    }


def _validated_pairs(own: Mapping[str, str], fold: Fold, predicted: np.ndarray) -> pd.DataFrame:
    v = fold.validation
    return pd.DataFrame(
        {
            **own,
            "task_a": [fold.rows.task_a[i] for i in v],
            "task_b": [fold.rows.task_b[i] for i in v],
            "measured": fold.rows.outcome[v],
            "predicted": predicted[v],
            "training_mean": float(fold.training_outcome.mean()),
        }
    )


def _record(protocol: str, fold: Fold, folds: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    measured, predicted, training_mean = (
        predictions[column].to_numpy() for column in ("measured", "predicted", "training_mean")
    )
    r_mean, r_std = mean_and_std(folds["r"].to_numpy())
    scores = {
        "r_mean": r_mean,
        "r_std": r_std,
        "rho_mean": mean_and_std(folds["rho"].to_numpy())[0],
        "train_r_mean": mean_and_std(folds["train_r"].to_numpy())[0],
        "pooled_r": pearson_r(predicted, measured),
        "mae": mean_absolute_error(predicted, measured),
        "r2_over_training_mean": r2_over_training_mean(predicted, measured, training_mean),
    }
    return {
        "method": fold.method,
        "predictor": str(predictions["predictor"].iloc[0]),
        "protocol": protocol,
        "target": fold.target,
        **{name: None if math.isnan(value) else value for name, value in scores.items()},
        "n_folds": len(folds),
        "n_pairs": len(fold.rows.outcome),
        "n_undefined": int(folds["r"].isna().sum()),
    }


def _combine(parts: Sequence[PredictionResult], notes: Sequence[str]) -> PredictionResult:
    if not parts:
        return PredictionResult(notes=list(notes))

    def stack(name: str) -> pd.DataFrame:
        frames = [frame for frame in (getattr(part, name) for part in parts) if len(frame)]
        return pd.concat(frames, ignore_index=True) if frames else copy.copy(getattr(parts[0], name))

    return PredictionResult(
        [record for part in parts for record in part.records],
        stack("folds"),
        stack("predictions"),
        stack("coefficients"),
        [*notes, *(note for part in parts for note in part.notes)],
    )
