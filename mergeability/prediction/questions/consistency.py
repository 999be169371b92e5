"""Whether mergeability belongs to the pair: do two merge methods put the same pairs first?"""

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
    """Correlate the outcomes of every two methods over pairs of models: one row a target and two methods.

    `rho` is Spearman's ρ (1904), the correlation of ranks, over the pairs that both methods have: 1 where they order
    the pairs alike, 0 where one says nothing of the other. `rho_low` and `rho_high` bound it at 95 % by
    `interval_over_tasks`. `rho_beyond` is ρ of what y = μ + u_a + u_b leaves of either outcome by least squares over
    the same pairs, since methods may agree about nothing but who is in the pair.

    Args:
        pairs: one row a pair, in any order: `task_a`, `task_b` and a column `<target>_<method>` of each outcome, NaN
            where there is none.
        outcomes: (target, method) of each outcome.

    Returns:
        Columns `target`, `method_a`, `method_b`, `rho`, `rho_low`, `rho_high`, `rho_beyond`, `n_pairs`; correlations
        are in [-1, 1]. All are NaN for fewer than three pairs or a constant outcome, the interval also where
        leaving out a task comes to that, and `rho_beyond` where task effects leave nothing, or less than the two
        degrees of freedom that three values have.
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
        # In a single dimension any two residuals are proportional, as any two points lie on a line.
        if len(outcome) - rank < MIN_PAIRS - 1:
            return float("nan")
        # Ranks would take rounding for order: a+b and c+d leave the same where there are four tasks.
        left.append(np.round(residual / (_ROUNDING * np.abs(outcome).max())))
    return spearman_rho(*left)
