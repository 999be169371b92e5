"""Test whether metrics predict better than chance, by permuting tasks.

Pairs that share a task are not independent, so the usual p-value of a correlation over pairs is too small. Here the
tasks of the metric table are permuted at random: pair (a, b) gets the metrics of (π(a), π(b)), which keeps every
dependence within the metrics and within the outcomes and breaks the dependence between them (the quadratic assignment
procedure: Mantel, 1967; Krackhardt, 1988).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import pearsonr

from mergeability.prediction.pair_table import PairRows, PairTable
from mergeability.prediction.predictors.moments import Sums, TaskSums
from mergeability.prediction.predictors.ridge import ridge_weights
from mergeability.prediction.predictors.scaling import RangeScaler
from mergeability.prediction.validation.scores import pearson_r
from mergeability.progress import Progress, no_progress

METRIC_STRENGTH, TASK_STRENGTH = 3.0, 0.1
"""Of the ridge fits: fixed, since the test is valid without choosing them again for every permutation."""


@dataclass(frozen=True)
class PermutationTest:
    """Hold the result of a permutation test.

    Attributes:
        methods: one row per target and method: `r`, the leave-one-task-out correlation of ridge on the metrics, and
            `gain`, the share by which metrics cleared of task effects lower the additive model's squared error in the
            left-out folds (0: no change; negative: a larger error), with their p-values `p` and `p_beyond`.
        single: one row per target, method and metric: `r`, the usual p-value `p_usual`, that of the permutation test
            `p`, and `n_pairs`.
    """

    methods: pd.DataFrame
    single: pd.DataFrame


def permutation_test(
    table: PairTable,
    outcomes: Sequence[tuple[str, str]],
    permutations: int = 999,
    seed: int = 0,
    progress: Progress = no_progress,
    strength: float = METRIC_STRENGTH,
) -> PermutationTest:
    """Test whether metrics predict each outcome better than they do after the tasks are permuted.

    p = (1 + number of permutations at least as good) / (1 + permutations); of a single metric |r| is compared. A pair
    that a permutation maps to a pair without metrics is left out of it.

    Args:
        table: the pairs.
        outcomes: (target, method) of each outcome.
        permutations: how many; 0 leaves the p-values undefined.
        seed: seed of the permutations, which are the same for all outcomes.
        progress: wraps the loop over them.
        strength: strength of ridge on the metrics; ten times as much on metrics cleared of task effects.
    """
    groups: dict[bytes, list[tuple[str, str]]] = {}
    for target, method in outcomes:
        groups.setdefault(table.usable(f"{target}_{method}").tobytes(), []).append((target, method))
    methods, single = [], []
    for members in groups.values():
        rows = [table.rows(f"{target}_{method}")[0] for target, method in members]
        if len(rows[0].outcome) < 3:
            continue
        test = _Test(rows[0], np.stack([one.outcome for one in rows], axis=1), strength)
        found = test.run(permutations, seed, progress)
        methods += [
            {"target": target, "method": method} | {name: value[k] for name, value in found.items()}
            for k, (target, method) in enumerate(members)
        ]
    for target, method in outcomes:
        single += _single_rows(table, target, method, permutations, seed)
    order = {key: position for position, key in enumerate(outcomes)}
    methods.sort(key=lambda row: order[row["target"], row["method"]])
    return PermutationTest(pd.DataFrame(methods), pd.DataFrame(single))


class _Test:
    """All outcomes that are known for the same pairs."""

    def __init__(
        self, rows: PairRows, Y: Float[np.ndarray, "n K"], strength: float = METRIC_STRENGTH
    ) -> None:
        self.Y, self.strength = Y, strength
        # Ranges do not change under permutation, so one scaling serves all.
        self.X = RangeScaler().fit_transform(rows.features)
        self.J = rows.incidence
        self.index = _pair_index(rows.incidence)
        # The columns of the two ones in each incidence row.
        self.ends = np.argsort(-rows.incidence, axis=1, kind="stable")[:, :2]

    def run(self, permutations: int, seed: int, progress: Progress) -> dict[str, Float[np.ndarray, " K"]]:
        r, gain = self._statistics(np.arange(len(self.X)))
        as_good = np.zeros((2, self.Y.shape[1]))
        draws = _draws(self.J.shape[1], permutations, seed)
        for drawn in progress(draws, "permutation test", permutations):
            other_r, other_gain = self._statistics(self.index[drawn[self.ends[:, 0]], drawn[self.ends[:, 1]]])
            # The observed statistic counts among the permutations (1 + …), so that p is never 0.
            as_good += [other_r >= r, other_gain >= gain]
        p = (1 + as_good) / (1 + permutations) if permutations else np.full(as_good.shape, np.nan)
        undefined = np.isnan(np.stack([r, gain]))
        p = np.where(undefined, np.nan, p)
        return {"r": r, "p": p[0], "gain": gain, "p_beyond": p[1]}

    def _statistics(
        self, taken: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
        """Score the outcomes by the metrics of the rows `taken`; -1 leaves a pair out."""
        known = taken >= 0
        X, J, Y, ends = self.X[taken[known]], self.J[known], self.Y[known], self.ends[known]
        m, tasks = X.shape[1], J.shape[1]
        count = np.bincount(ends.ravel(), minlength=tasks)
        # One fold per task, if it has pairs and other pairs remain for training.
        held_out = np.flatnonzero((count > 0) & (count < len(ends)))
        moments = TaskSums(np.hstack([X, J]), Y, ends, tasks).without_one(held_out)
        metric_weights = ridge_weights(
            moments.gram[:, :m, :m], moments.cross[:, :m], np.array([self.strength])
        )[:, 0]
        u, w = _two_stages(moments, m, tasks, self.strength)
        correlations, error, additive_error = [], 0.0, 0.0
        for f, task in enumerate(held_out):
            rows = np.flatnonzero((ends[:, 0] == task) | (ends[:, 1] == task))
            x, j = X[rows] - moments.means[f, :m], J[rows] - moments.means[f, m:]
            y = Y[rows] - moments.outcome_means[f]
            correlations.append(_columns_r(x @ metric_weights[f], y))
            # Centre within the fold, because its level depends on the left-out task, which is unknown.
            additive = y - j @ u[f, :, m:]
            additive -= additive.mean(axis=0)
            beyond = (x - j @ u[f, :, :m]) @ w[f]
            additive_error = additive_error + (additive**2).sum(axis=0)
            left = additive - beyond
            error = error + ((left - left.mean(axis=0)) ** 2).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = np.where(additive_error > 0, 1 - error / additive_error, np.nan)
        counted = ~np.isnan(correlations)
        total = np.nansum(correlations, axis=0)
        r = np.divide(total, counted.sum(axis=0), out=np.full(total.shape, np.nan), where=counted.any(axis=0))
        return r, gain


def _two_stages(
    moments: Sums, m: int, tasks: int, strength: float
) -> tuple[Float[np.ndarray, "F T q"], Float[np.ndarray, "F m K"]]:
    """Fit task effects of metrics and outcomes, and ridge of what they leave: as `Dyadic`, at one strength."""
    jj = moments.gram[:, m:, m:] + TASK_STRENGTH * np.eye(tasks)
    xj, jy = moments.gram[:, :m, m:], moments.cross[:, m:]
    u = np.linalg.solve(jj, np.concatenate([xj.mT, jy], axis=2))
    a, b = u[..., :m], u[..., m:]
    inner = moments.gram[:, m:, m:]
    left = moments.gram[:, :m, :m] - xj @ a - a.mT @ xj.mT + a.mT @ inner @ a
    cross = moments.cross[:, :m] - xj @ b - a.mT @ jy + a.mT @ inner @ b
    w = np.linalg.solve(left + 10 * strength * np.eye(m), cross)
    return u, w


def _single_rows(
    table: PairTable, target: str, method: str, permutations: int, seed: int
) -> list[dict[str, Any]]:
    """Correlate each metric with an outcome over the pairs that have both."""
    outcome = table.frame[f"{target}_{method}"].to_numpy()
    tasks = {task: i for i, task in enumerate(table.tasks)}
    found = []
    by_rows: dict[bytes, list[str]] = {}
    for metric in table.metrics:
        # Metrics with the same known pairs are tested together, with the same permutations.
        known = ~np.isnan(outcome) & table.frame[metric].notna().to_numpy()
        by_rows.setdefault(known.tobytes(), []).append(metric)
    for key, metrics in by_rows.items():
        known = np.frombuffer(key, dtype=bool)
        ends = np.array([[tasks[a], tasks[b]] for a, b in table.ends[known]]).reshape(-1, 2)
        X, y = table.frame.loc[known, metrics].to_numpy(dtype=float), outcome[known]
        p = _single_p(X, y, ends, len(tasks), permutations, seed)
        for k, metric in enumerate(metrics):
            r = pearson_r(X[:, k], y)
            usual = _usual_p(X[:, k], y) if not np.isnan(r) else float("nan")
            found.append(
                {
                    "target": target,
                    "method": method,
                    "metric": metric,
                    "r": r,
                    "p_usual": usual,
                    "p": p[k] if not np.isnan(r) else float("nan"),
                    "n_pairs": int(known.sum()),
                }
            )
    place = {metric: i for i, metric in enumerate(table.metrics)}
    return sorted(found, key=lambda row: place[row["metric"]])


def _usual_p(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    result: Any = pearsonr(x, y)
    return float(result.pvalue)


def _single_p(
    X: Float[np.ndarray, "n m"],
    y: Float[np.ndarray, " n"],
    ends: Int[np.ndarray, "n 2"],
    tasks: int,
    permutations: int,
    seed: int,
) -> Float[np.ndarray, " m"]:
    if not permutations or len(y) < 3:
        return np.full(X.shape[1], np.nan)
    index = np.full((tasks, tasks), -1)
    index[ends[:, 0], ends[:, 1]] = index[ends[:, 1], ends[:, 0]] = np.arange(len(ends))
    observed = np.abs(_columns_r(X, np.repeat(y[:, None], X.shape[1], axis=1)))
    as_large = np.zeros(X.shape[1])
    for drawn in _draws(tasks, permutations, seed):
        taken = index[drawn[ends[:, 0]], drawn[ends[:, 1]]]
        known = taken >= 0
        other = _columns_r(X[taken[known]], np.repeat(y[known, None], X.shape[1], axis=1))
        # Round to the reliable decimals, so that the identity permutation counts as equal.
        as_large += np.abs(other) >= observed - 1e-12
    return (1 + as_large) / (1 + permutations)


def _draws(tasks: int, permutations: int, seed: int) -> Iterable[Int[np.ndarray, " T"]]:
    generator = np.random.default_rng(seed)
    return (generator.permutation(tasks) for _ in range(permutations))


def _pair_index(incidence: Float[np.ndarray, "n T"]) -> Int[np.ndarray, "T T"]:
    """Number the pairs by their tasks, -1 where there is none."""
    tasks = incidence.shape[1]
    index = np.full((tasks, tasks), -1)
    for row, marks in enumerate(incidence):
        a, b = np.flatnonzero(marks)
        index[a, b] = index[b, a] = row
    return index


def _columns_r(first: Float[np.ndarray, "n K"], second: Float[np.ndarray, "n K"]) -> Float[np.ndarray, " K"]:
    """Correlate column by column; NaN for fewer than three rows or a constant column."""
    if len(first) < 3:
        return np.full(first.shape[1], np.nan)
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    lengths = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    scales = [np.abs(one).max(axis=0) * np.sqrt(len(one)) for one in (first, second)]
    varies = np.logical_and(*(length > 1e-9 * scale for length, scale in zip(lengths, scales, strict=True)))
    product = lengths[0] * lengths[1]
    return np.divide((a * b).sum(axis=0), product, out=np.full(product.shape, np.nan), where=varies)
