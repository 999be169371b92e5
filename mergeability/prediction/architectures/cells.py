"""Define a cell: the outcomes, correlations and coefficients of one architecture, seed and merge method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from mergeability.prediction.architectures.analyses import TARGET, Analysis
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.predictors.pearson import Pearson
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.questions.fingerprints import TOP
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.protocols import LeaveOneTaskOut
from mergeability.prediction.validation.scores import is_constant, is_constant_column

PREDICTORS: dict[str, Predictor] = {
    "ridge": Ridge(),
    "pearson_l1": Pearson(
        penalty=1.0,
        initial_std=0.1,
        sum_to_one=False,
        max_steps=2000,
        patience=100,
        tolerance=1e-5,
        cutoff=1e-3,
    ),
}
"""The predictors whose coefficients are compared, as in `conf/predictor`: fixed, to avoid selection bias."""

Cell = tuple[str, int, str]
"""An architecture, a seed and a merge method."""


def coefficient_table(analysis: Analysis, metrics: Sequence[str]) -> pd.DataFrame:
    """Fit each predictor with one task left out at a time, and return the coefficients of every fit.

    Args:
        analysis: the pairs.
        metrics: the columns to use.

    Returns:
        One row per predictor, method, left-out task (`held_out`) and `metric`, with its `coefficient`.
    """
    result = evaluate_predictors(
        analysis.pairs, metrics, PREDICTORS, analysis.methods, [TARGET], [LeaveOneTaskOut()]
    )
    return result.coefficients[["predictor", "method", "held_out", "metric", "coefficient"]]


@dataclass(frozen=True)
class Cells:
    """Hold the pairs and the coefficients of every cell (architecture, seed, method), to compare cells with each other.

    Attributes:
        names: the cells.
        metrics: the metrics that all analyses have.
        tables: (architecture, seed) → its pairs, in a fixed order.
        coefficients: (predictor, architecture, seed, method) → coefficients of each fold by left-out task; the mean
            over folds under None.
    """

    names: tuple[Cell, ...]
    metrics: tuple[str, ...]
    tables: Mapping[tuple[str, int], Analysis]
    coefficients: Mapping[tuple[str, str, int, str], Mapping[str | None, np.ndarray]]
    _memory: dict = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        analyses: Sequence[Analysis],
        metrics: Sequence[str],
        coefficients: Mapping[tuple[str, int], pd.DataFrame],
    ) -> "Cells":
        """Collect the cells of several analyses: one per architecture, seed and merge method.

        Args:
            analyses: the pair tables.
            metrics: the metrics to compare.
            coefficients: (architecture, seed) → the result of `coefficient_table`.
        """
        tables = {(one.architecture, one.seed): one.sorted() for one in analyses}
        found: dict[tuple[str, str, int, str], dict[str | None, np.ndarray]] = {}
        for (architecture, seed), table in coefficients.items():
            for key, rows in table.groupby(["predictor", "method"], sort=False):
                predictor, method = map(str, key)
                wide = rows.pivot_table(index="held_out", columns="metric", values="coefficient", sort=False)
                weights = wide.reindex(columns=list(metrics)).to_numpy(dtype=float)
                own: dict[str | None, np.ndarray] = dict(zip(map(str, wide.index), weights, strict=True))
                found[predictor, architecture, seed, method] = {None: weights.mean(axis=0), **own}
        names = tuple((*key, method) for key, table in tables.items() for method in table.methods)
        return cls(names, tuple(metrics), tables, found)

    def weights(self, predictor: str, without: str | None = None) -> Float[np.ndarray, "cells m"]:
        """Return the coefficients of each cell, averaged over folds.

        If the task `without` is given, the coefficients of the fold that leaves this task out are returned instead.
        """
        rows = []
        for architecture, seed, method in self.names:
            own = self.coefficients.get((predictor, architecture, seed, method))
            missing = np.full(len(self.metrics), np.nan)
            rows.append(missing if own is None else own.get(without, own[None]))
        return np.array(rows).reshape(-1, len(self.metrics))

    def correlations(self, without: str | None = None) -> Float[np.ndarray, "cells m"]:
        """Return Pearson's r between each metric and the outcome, over the pairs of each cell.

        r is NaN if the metric or the outcome is constant.
        """
        key = ("correlations", without)
        if key not in self._memory:
            rows = []
            for architecture, seed, method in self.names:
                pairs = self.arrays(architecture, seed)
                kept = (pairs.ends != without).all(axis=1)
                rows.append(correlations(pairs.features[kept], pairs.outcomes[method][kept]))
            self._memory[key] = np.array(rows).reshape(-1, len(self.metrics))
        return self._memory[key]

    def arrays(self, architecture: str, seed: int) -> "Arrays":
        """Return the pairs of one analysis as arrays; selecting rows from arrays is faster than from a data frame."""
        key = ("arrays", architecture, seed)
        if key not in self._memory:
            table = self.tables[architecture, seed]
            outcomes = {name: table.pairs[f"{TARGET}_{name}"].to_numpy(dtype=float) for name in table.methods}
            features = table.pairs[list(self.metrics)].to_numpy(dtype=float)
            ends = table.pairs[["task_a", "task_b"]].to_numpy(dtype=object)
            self._memory[key] = Arrays(ends, features, outcomes)
        return self._memory[key]

    def agreement(
        self, measure: str, predictor: str = "", without: str | None = None
    ) -> Float[np.ndarray, "cells cells"]:
        """Return a matrix with the agreement of every cell in `names` with every other cell.

        Args:
            measure: "top5_overlap", the share of metrics among the five largest |w| of both, or "sign_agreement", the
                share of metrics whose coefficients have equal signs, as in `fingerprints`; "rho", Spearman's ρ of
                outcomes over the same pairs of tasks, NaN if the tasks differ.
            predictor: whose coefficients are compared.
            without: the task to leave out.
        """
        key = (measure, predictor, without)
        if key not in self._memory:
            self._memory[key] = {
                "top5_overlap": self._top_overlaps,
                "sign_agreement": self._sign_agreements,
                "rho": self._rank_agreements,
            }[measure](predictor, without)
        return self._memory[key]

    def _top_overlaps(self, predictor: str, without: str | None) -> Float[np.ndarray, "cells cells"]:
        weights = self.weights(predictor, without)
        top = min(TOP, weights.shape[1])
        chosen = np.zeros_like(weights)
        for row, own in zip(chosen, weights, strict=True):
            largest = np.argsort(-np.abs(own), kind="stable")[:top]
            row[largest[own[largest] != 0]] = 1
        return _masked(chosen @ chosen.T / max(top, 1), weights)

    def _sign_agreements(self, predictor: str, without: str | None) -> Float[np.ndarray, "cells cells"]:
        weights = self.weights(predictor, without)
        signs = np.sign(weights)
        equal = sum((signs == one).astype(float) @ (signs == one).astype(float).T for one in (-1, 0, 1))
        return _masked(equal / max(weights.shape[1], 1), weights)

    def _rank_agreements(self, _predictor: str, without: str | None) -> Float[np.ndarray, "cells cells"]:
        found = np.full((len(self.names),) * 2, np.nan)
        for places, ends, outcomes in self._common_outcomes():
            kept = (ends != without).all(axis=1)
            if kept.sum() < 3:
                continue
            ranks = rankdata(outcomes[:, kept], axis=1)
            ranks = ranks - ranks.mean(axis=1, keepdims=True)
            lengths = np.sqrt((ranks**2).sum(axis=1))
            with np.errstate(invalid="ignore", divide="ignore"):
                rho = (ranks @ ranks.T) / np.outer(lengths, lengths)
            found[np.ix_(places, places)] = np.where(np.outer(lengths, lengths) > 0, rho, np.nan)
        return found

    def _common_outcomes(self) -> "list[tuple[list[int], np.ndarray, np.ndarray]]":
        """Group cells with the same tasks; return the pairs that have an outcome in all cells of a group."""
        if "common" not in self._memory:
            groups: dict[tuple[str, ...], list[int]] = {}
            for place, (architecture, seed, _) in enumerate(self.names):
                groups.setdefault(self.tables[architecture, seed].tasks, []).append(place)
            self._memory["common"] = [(places, *self._common(places)) for places in groups.values()]
        return self._memory["common"]

    def _common(self, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        known = []
        for architecture, seed, method in (self.names[place] for place in places):
            pairs = self.arrays(architecture, seed)
            by_pair = dict(zip(map(tuple, pairs.ends.tolist()), pairs.outcomes[method].tolist(), strict=True))
            known.append({pair: outcome for pair, outcome in by_pair.items() if not np.isnan(outcome)})
        common = [pair for pair in known[0] if all(pair in one for one in known[1:])]
        ends = np.array(common, dtype=object).reshape(-1, 2)
        return ends, np.array([[one[pair] for pair in common] for one in known])


@dataclass(frozen=True)
class Arrays:
    """The pairs of one analysis as arrays.

    Attributes:
        ends: the two tasks of each pair, (n, 2).
        features: the metrics that all analyses have, (n, m).
        outcomes: method → n outcomes.
    """

    ends: np.ndarray
    features: Float[np.ndarray, "n m"]
    outcomes: Mapping[str, np.ndarray]


def correlations(
    features: Float[np.ndarray, "n m"], outcome: "pd.Series | np.ndarray"
) -> Float[np.ndarray, " m"]:
    """Return Pearson's r between every column and one outcome, over the rows that contain this outcome.

    r is NaN if the column or the outcome is constant, or if fewer than three rows contain the outcome.
    """
    y = np.asarray(outcome, dtype=float)
    known = ~np.isnan(y)
    X, y = (features, y) if known.all() else (features[known], y[known])
    if len(y) < 3 or is_constant(y):
        return np.full(features.shape[1], np.nan)
    constant = is_constant_column(X)
    X, y = X - X.mean(axis=0), y - y.mean()
    lengths = np.sqrt((X**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = X.T @ y / (lengths * np.sqrt(y @ y))
    return np.where(constant, np.nan, r)


def _masked(
    values: Float[np.ndarray, "cells cells"], weights: Float[np.ndarray, "cells m"]
) -> Float[np.ndarray, "cells cells"]:
    missing = np.flatnonzero(np.isnan(weights).sum(axis=1))
    values = values.copy()
    values[missing], values[:, missing] = np.nan, np.nan
    return values
