"""Predict the outcomes of unevaluated pairs from the outcomes of evaluated pairs of the same models.

Both models of a predicted pair also occur in evaluated pairs, so their task effects are known. This is easier than the
prediction for new models, which the protocols measure. Cross-validation over the evaluated pairs selects one of four
linear predictors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mergeability.prediction.pair_table import TARGETS, summarise_names, task_order
from mergeability.prediction.predictors.additive import Additive
from mergeability.prediction.predictors.arrays import InnerFold, Problem
from mergeability.prediction.predictors.dyadic import Dyadic
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.predictors.scaling import RangeScaler
from mergeability.prediction.validation.intervals import half_width
from mergeability.prediction.validation.scores import pearson_r
from mergeability.threads import one_blas_thread

FEWEST = 5
"""Evaluated pairs below which nothing is predicted."""
_FOLDS = 5
# Includes weak strengths, because task effects need less shrinkage than the weights of metrics.
_JOINT_STRENGTHS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)


@dataclass(frozen=True)
class Unevaluated:
    """Hold predictions for pairs that were not evaluated.

    Attributes:
        predictions: one row per such pair: `task_a`, `task_b`, and for each target t and method m `predicted_t_m` with
            its interval `predicted_low_t_m`, `predicted_high_t_m`; NaN if a metric is undefined.
        accuracy: one row per target and method: the `predictor` that cross-validation chose, `n_measured` and
            `n_predicted` pairs, and of the cross-validation `mae`, `mae_of_mean` (always predicting the mean), `r`, and
            the `half_width` of intervals with their `level`.
        notes: sentences about what was not predicted.
    """

    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    accuracy: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A linear predictor and its input columns."""

    regressor: Any
    metrics: bool
    tasks: bool

    def fit(self, problems: Sequence[Problem], tasks: int) -> list[Any]:
        options = {"tasks": tasks} if isinstance(self.regressor, Dyadic) else {}
        return list(self.regressor.fit_many(problems, **options))


def _candidates() -> dict[str, _Candidate]:
    return {
        "additive": _Candidate(Additive(), metrics=False, tasks=True),
        "ridge": _Candidate(Ridge(), metrics=True, tasks=False),
        "dyadic": _Candidate(Dyadic(), metrics=True, tasks=True),
        "ridge with task effects": _Candidate(Ridge(_JOINT_STRENGTHS), metrics=True, tasks=True),
    }


def predict_unevaluated(
    pairs: pd.DataFrame, metrics: Sequence[str], methods: Sequence[str], seed: int = 0
) -> Unevaluated:
    """Predict missing outcomes of pairs from the pairs whose outcomes are known.

    Each outcome is predicted from task effects, metrics or both, according to the least squared error in a
    cross-validation that leaves out one fifth of the evaluated pairs at a time. The absolute errors there determine the
    interval; see `half_width`.

    Args:
        pairs: one row per pair: `task_a`, `task_b`, metrics, and the outcomes `<target>_<method>`, NaN if a pair
            was not evaluated.
        metrics: names of the metric columns; metrics without any value are ignored.
        methods: merge methods for which outcomes were measured.
        seed: seed of the folds.
    """
    outcomes = [f"{t}_{m}" for t in TARGETS for m in methods if f"{t}_{m}" in pairs.columns]
    missing = pairs[outcomes].isna().all(axis=1).to_numpy()
    if not outcomes or not missing.any():
        return Unevaluated()
    if (~missing).sum() < FEWEST:
        note = (
            f"The other pairs were not predicted: {(~missing).sum()} evaluated pairs are fewer than {FEWEST}."
        )
        return Unevaluated(notes=(note,))
    problem = _Problem.of(pairs, metrics)
    rest = np.flatnonzero(missing)
    found: dict[str, Any] = {end: pairs[end].to_numpy()[rest] for end in ("task_a", "task_b")}
    rows = []
    with one_blas_thread():
        # Outcomes with the same pairs are fitted together.
        for measured, names in _by_rows(pairs, outcomes, problem.known).items():
            if len(measured) < FEWEST:
                continue
            solved = problem.solve(
                np.array(measured), pairs[names].to_numpy(dtype=float)[list(measured)], seed
            )
            for name, fit in zip(names, solved, strict=True):
                values = fit.predict(problem, rest)
                found[f"predicted_{name}"] = values
                found[f"predicted_low_{name}"] = values - fit.record["half_width"]
                found[f"predicted_high_{name}"] = values + fit.record["half_width"]
                target = next(one for one in TARGETS if name.startswith(f"{one}_"))
                labels = {"target": target, "method": name.removeprefix(f"{target}_")}
                counts = {"n_measured": len(measured), "n_predicted": int(np.isfinite(values).sum())}
                rows.append({**labels, "predictor": fit.predictor, **counts, **fit.record})
    return Unevaluated(pd.DataFrame(found), pd.DataFrame(rows), tuple(_notes(problem, rest, outcomes, found)))


def _by_rows(
    pairs: pd.DataFrame, outcomes: Sequence[str], known: np.ndarray
) -> dict[tuple[int, ...], list[str]]:
    """Group outcomes by the rows that have them and all metrics."""
    found: dict[tuple[int, ...], list[str]] = {}
    for name in outcomes:
        rows = tuple(np.flatnonzero(pairs[name].notna().to_numpy() & known).tolist())
        found.setdefault(rows, []).append(name)
    return found


def _notes(
    problem: "_Problem", rest: np.ndarray, outcomes: Sequence[str], found: Mapping[str, Any]
) -> list[str]:
    """Describe which pairs were not predicted, and why."""
    notes = []
    undefined = int((~problem.known[rest]).sum())
    if undefined:
        notes.append(f"{undefined} of {len(rest)} pairs were not predicted because a metric is undefined.")
    lacking = [name for name in outcomes if f"predicted_{name}" not in found]
    if lacking:
        notes.append(
            f"These outcomes were not predicted, because each is known for fewer than {FEWEST} pairs:"
            f" {summarise_names(lacking)}."
        )
    return notes


@dataclass(frozen=True)
class _Fit:
    """The fit of one outcome: predicted = intercept + metrics·weights + effects of both tasks."""

    predictor: str
    weights: Float[np.ndarray, " m"]
    effects: Float[np.ndarray, " T"]
    intercept: float
    record: dict[str, float]

    def predict(self, problem: "_Problem", rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Predict the outcome of the given pairs; NaN if a metric is undefined."""
        a, b = problem.ends[rows].T
        found = self.intercept + problem.metrics[rows] @ self.weights + self.effects[a] + self.effects[b]
        return np.where(problem.known[rows], found, np.nan)


@dataclass(frozen=True)
class _Problem:
    """All pairs as numbers: scaled metrics (0 if undefined), the places of both tasks, and which rows are whole."""

    metrics: Float[np.ndarray, "n m"]
    ends: Int[np.ndarray, "n 2"]
    tasks: int
    known: np.ndarray

    @classmethod
    def of(cls, pairs: pd.DataFrame, metrics: Sequence[str]) -> "_Problem":
        used = [name for name in metrics if pairs[name].notna().any()]
        values = pairs[used].to_numpy(dtype=np.float64)
        known = np.isfinite(values).all(axis=1).reshape(-1)
        if used and known.any():
            # Scale by the range of all pairs, because many pairs would be outside the range of the few evaluated ones.
            values = RangeScaler().fit(values[known]).transform(np.where(known[:, None], values, 0.0))
            values = np.where(known[:, None], values, 0.0)
        tasks = task_order(pairs[["task_a", "task_b"]].to_numpy(dtype=object))
        places = {task: place for place, task in enumerate(tasks)}
        ends = np.stack(
            [pairs[end].map(places).to_numpy(dtype=np.int64) for end in ("task_a", "task_b")], axis=1
        )
        return cls(values, ends, len(tasks), known)

    def solve(self, rows: Int[np.ndarray, " n"], outcomes: Float[np.ndarray, "n K"], seed: int) -> list[_Fit]:
        """Fit every outcome with the candidate predictor that has the lowest error on left-out pairs."""
        folds = _folds(len(rows), seed)
        of_tasks = np.zeros((len(rows), self.tasks))
        np.put_along_axis(of_tasks, self.ends[rows], 1.0, axis=1)
        errors, fits = {}, {}
        for name, candidate in _candidates().items():
            if candidate.metrics and not self.metrics.shape[1]:
                continue
            parts = [self.metrics[rows]] if candidate.metrics else []
            columns = np.concatenate([*parts, of_tasks], axis=1) if candidate.tasks else parts[0]
            errors[name] = np.empty_like(outcomes)
            for training, validation in folds:
                fitted = candidate.fit(_problems(columns[training], outcomes[training], seed), self.tasks)
                for column, one in enumerate(fitted):
                    predicted = columns[validation] @ one.coef_ + one.intercept_
                    errors[name][validation, column] = predicted - outcomes[validation, column]
            fits[name] = candidate.fit(_problems(columns, outcomes, seed), self.tasks)
        means = np.empty_like(outcomes)
        for training, validation in folds:
            means[validation] = outcomes[training].mean(axis=0)
        found = []
        for column, outcome in enumerate(outcomes.T):
            name = min(errors, key=lambda one: float((errors[one][:, column] ** 2).mean()))
            error, fit, candidate = errors[name][:, column], fits[name][column], _candidates()[name]
            width, level = half_width(np.abs(error))
            record = {
                "mae": float(np.abs(error).mean()),
                "mae_of_mean": float(np.abs(outcome - means[:, column]).mean()),
                "r": pearson_r(outcome + error, outcome),
                "half_width": width,
                "level": level,
            }
            count = self.metrics.shape[1]
            weights = fit.coef_[:count] if candidate.metrics else np.zeros(count)
            effects = fit.coef_[-self.tasks :] if candidate.tasks else np.zeros(self.tasks)
            found.append(_Fit(name, weights, effects, float(fit.intercept_), record))
        return found


def _folds(count: int, seed: int) -> list[InnerFold]:
    """Divide rows into folds at random."""
    order = np.random.default_rng(seed).permutation(count)
    parts = [np.sort(order[start::_FOLDS]) for start in range(min(_FOLDS, count))]
    return [(np.setdiff1d(order, part), part) for part in parts]


def _problems(columns: np.ndarray, outcomes: np.ndarray, seed: int) -> list[Problem]:
    """Make one problem per outcome; they share their rows and folds, so that they are solved together."""
    folds = _folds(len(columns), seed + 1)
    return [(columns, outcome, folds) for outcome in outcomes.T.copy()]
