"""Choose which pairs to evaluate within a budget, so that models occur equally often and metrics are diverse."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mergeability.prediction.pair_table import task_order

# Strength of the ridge fit whose variance is minimised, for metrics with standard deviation 1.
_STRENGTH = 10.0


def choose_pairs(
    pairs: pd.DataFrame, metrics: Sequence[str], count: int, seed: int = 0
) -> Int[np.ndarray, " count"]:
    """Choose the pairs whose outcomes best predict the outcomes of the other pairs.

    Repeatedly, the model in the fewest chosen pairs is paired with the model in the fewest; on ties, with the one
    whose pair most reduces the mean variance, over all pairs, of a ridge fit on the metrics (greedy V-optimality):
    xᵀASAx / (1 + xᵀAx), with x the standardised metrics, S their covariance and A the inverse of XᵀX + λI over the
    chosen pairs. If all pairs exist, each model is therefore in ⌊2·count/T⌋ or ⌈2·count/T⌉ of the chosen pairs, plus
    or minus one. This takes O(count·T·m²) operations for T models and m metrics.

    Args:
        pairs: one row per pair: `task_a`, `task_b`, metrics. Outcomes are not used.
        metrics: names of the metric columns; an undefined value counts as the metric's mean.
        count: number of pairs to choose.
        seed: seed of the order of models that are in equally many pairs. The choice depends on it, on the table's
            content
            and on `count`, not on the order of its rows.

    Returns:
        Rows of the table in the order of their choice; all of them if `count` is no less than their number.

    Examples:
        >>> table = pd.DataFrame({"task_a": list("aaabbc"), "task_b": list("bcdcdd"), "x": [0, 1, 9, 1, 0, 0]})
        >>> sorted("".join(table.loc[row, ["task_a", "task_b"]]) for row in choose_pairs(table, ["x"], 2))
        ['ab', 'cd']
    """
    ends = np.sort(pairs[["task_a", "task_b"]].to_numpy(dtype=object), axis=1)
    tasks = sorted(task_order(ends))
    if count >= len(ends):
        return np.arange(len(ends))
    places = {task: place for place, task in enumerate(tasks)}
    # Row of the pair (i, j); -1 if it is not in the table.
    rows = np.full((len(tasks), len(tasks)), -1, dtype=np.int64)
    a, b = (np.array([places[task] for task in side]) for side in ends.T)
    rows[a, b] = rows[b, a] = np.arange(len(ends))
    values = _standardised(pairs[list(metrics)].to_numpy(dtype=np.float64))
    # Sum in alphabetical order, so that the order of rows does not affect the result.
    ordered = values[np.lexsort((b, a))]
    covariance = ordered.T @ ordered / len(ordered)
    inverse = np.eye(values.shape[1]) / _STRENGTH
    degree, rank = np.zeros(len(tasks), dtype=np.int64), np.random.default_rng(seed).permutation(len(tasks))
    left = (rows >= 0).sum(axis=1)
    chosen = []
    for _ in range(count):
        first = int(np.lexsort((rank, np.where(left > 0, degree, np.iinfo(np.int64).max)))[0])
        partners = np.flatnonzero(rows[first] >= 0)
        partners = partners[degree[partners] == degree[partners].min()]
        # Candidates are sorted by rank, so ties go to the first.
        partners = partners[np.argsort(rank[partners])]
        gains = _gains(values[rows[first, partners]], inverse, covariance)
        second = int(partners[np.argmax(gains)])
        row = int(rows[first, second])
        chosen.append(row)
        rows[first, second] = rows[second, first] = -1
        for end in (first, second):
            degree[end] += 1
            left[end] -= 1
        turned = inverse @ values[row]
        inverse -= np.outer(turned, turned) / (1 + values[row] @ turned)
    return np.array(chosen, dtype=np.int64)


def _standardised(values: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Shift and scale columns to mean 0 and standard deviation 1; 0 if undefined or without spread."""
    known = ~np.isnan(values)
    counts = np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - np.where(known, values, 0).sum(axis=0) / counts, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / counts)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


def _gains(
    values: Float[np.ndarray, "n m"], inverse: Float[np.ndarray, "m m"], covariance: Float[np.ndarray, "m m"]
) -> Float[np.ndarray, " n"]:
    """Return the reduction of the mean variance by each row, rounded so that equal rows stay equal."""
    turned = values @ inverse
    gains = np.einsum("ij,ij->i", turned @ covariance, turned) / (1 + np.einsum("ij,ij->i", turned, values))
    return np.round(gains, 12)
