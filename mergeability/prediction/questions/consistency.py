"""Measure how similarly merge methods rank the pairs."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

from mergeability.prediction.pair_table import incidence, task_order
from mergeability.prediction.questions.variance import residuals
from mergeability.prediction.validation.scores import MIN_PAIRS, interval_over_tasks, spearman_rho

_CORRELATIONS = ("rho", "rho_low", "rho_high", "rho_beyond")
_COLUMNS = ("target", "method_a", "method_b", *_CORRELATIONS, "n_pairs")
_ROUNDING = 1e-9


def method_consistency(pairs: pd.DataFrame, outcomes: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Compute Spearman's rank correlation ρ between the outcomes of two merge methods, for every pair of methods.

    `rho` is the correlation of ranks over the pairs that both methods have, in [-1, 1]: 1 if they order the pairs
    alike, 0 if their orders are unrelated. `rho_low` and `rho_high` are its 95 % interval by `interval_over_tasks`.
    `rho_beyond` is ρ of the residuals of both outcomes from y = μ + u_a + u_b, fitted by least squares to the same
    pairs: two methods may agree only because both depend on the two tasks alone.

    Args:
        pairs: one row per pair, in any order: `task_a`, `task_b` and a column `<target>_<method>` for each outcome,
            NaN if unknown.
        outcomes: (target, method) of each outcome.

    Returns:
        One row per target and pair of methods: `target`, `method_a`, `method_b`, `rho`, `rho_low`, `rho_high`,
        `rho_beyond`, `n_pairs`. Correlations are NaN for fewer than three pairs or a constant outcome; the interval
        also if this happens without one of the tasks; `rho_beyond` also if the residuals are 0 or have fewer than two
        degrees of freedom.

    Examples:
        >>> from mergeability.prediction import method_consistency
        >>> from mergeability.prediction.examples import example_pairs
        >>> outcomes = [("norm_acc", "task_arithmetic"), ("norm_acc", "ties")]
        >>> found = method_consistency(example_pairs(), outcomes)
        >>> found[["method_a", "method_b", "n_pairs"]].values.tolist()
        [['task_arithmetic', 'ties', 15]]
        >>> found[["rho", "rho_low", "rho_high", "rho_beyond"]].round(2).values.tolist()
        [[0.74, 0.3, 0.92, 0.88]]
    """
    rows = [
        {"target": target, "method_a": a, "method_b": b} | _agreement(pairs, f"{target}_{a}", f"{target}_{b}")
        for target in dict.fromkeys(target for target, _ in outcomes)
        for a, b in combinations([method for one, method in outcomes if one == target], 2)
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _agreement(pairs: pd.DataFrame, first: str, second: str) -> dict[str, float | int]:
    both = pairs[pairs[[first, second]].notna().all(axis=1)]
    ends = both[["task_a", "task_b"]].to_numpy(dtype=object)
    a, b = (both[name].to_numpy(dtype=np.float64) for name in (first, second))
    rho = spearman_rho(a, b)
    if np.isnan(rho):
        return dict.fromkeys(_CORRELATIONS, float("nan")) | {"n_pairs": len(both)}
    low, high = interval_over_tasks(a, b, ends, spearman_rho)
    found = (rho, low, high, _rho_beyond(a, b, ends))
    return dict(zip(_CORRELATIONS, found, strict=True)) | {"n_pairs": len(both)}


def _rho_beyond(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], ends: np.ndarray) -> float:
    tasks = incidence(ends, task_order(ends))
    left = []
    for outcome in (first, second):
        residual, rank = residuals(tasks, outcome)
        # With one degree of freedom, any two residual vectors are proportional, so their correlation is ±1.
        if len(outcome) - rank < MIN_PAIRS - 1:
            return float("nan")
        # Ranks would order rounding errors: with four tasks, a+b and c+d have the same residual.
        left.append(np.round(residual / (_ROUNDING * np.abs(outcome).max())))
    return spearman_rho(*left)
