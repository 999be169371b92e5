"""Where the variance of outcomes lies: in who is in the pair, in what metrics say beyond that, or in neither."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.scaling import RangeScaler


def variance_split(table: PairTable, outcomes: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Split the variance of each outcome by least squares: one row a target and method.

    `task_effects` is R² of y = μ + u_a + u_b. `beyond_raw` is what R² gains when the metrics join; as every column
    explains something by chance, `metrics_beyond` is what is left of that gain after the correction for their number
    (as in adjusted R²), at least 0, and `residual` the rest: the three shares add up to 1. All are fits to the rows
    themselves, not predictions.

    Args:
        table: the pairs.
        outcomes: (target, method) of each outcome.

    Returns:
        Columns `target`, `method`, `n_pairs`, `task_effects`, `metrics_beyond`, `residual`, `beyond_raw`; shares
        are NaN where the outcome is constant or there are not more pairs than columns.
    """
    rows = []
    for target, method in outcomes:
        pairs, _ = table.rows(f"{target}_{method}")
        rows.append({"target": target, "method": method, "n_pairs": len(pairs.outcome)} | _shares(pairs))
    return pd.DataFrame(rows)


def _shares(pairs) -> dict[str, float]:
    y = pairs.outcome - pairs.outcome.mean() if len(pairs.outcome) else pairs.outcome
    total = float(y @ y)
    names = ("task_effects", "metrics_beyond", "residual", "beyond_raw")
    if len(y) == 0 or total == 0:
        return dict.fromkeys(names, float("nan"))
    metrics = RangeScaler().fit_transform(pairs.features)
    beyond_effects, rank_effects = residuals(pairs.incidence, y)
    beyond_both, rank_both = residuals(np.hstack([pairs.incidence, metrics]), y)
    if rank_both >= len(y):
        return dict.fromkeys(names, float("nan"))
    left, left_both = (float(one @ one) / total for one in (beyond_effects, beyond_both))
    expected = left_both * (len(y) - rank_effects) / (len(y) - rank_both)
    beyond = max(0.0, left - expected)
    return {
        "task_effects": 1 - left,
        "metrics_beyond": beyond,
        "residual": left - beyond,
        "beyond_raw": left - left_both,
    }


def residuals(
    columns: Float[np.ndarray, "n q"], y: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], int]:
    """Fit y = μ + columns · w by least squares; return what it leaves of y, and the rank of the columns with μ's."""
    columns = np.hstack([np.ones((len(y), 1)), columns])
    # Metrics are measured in single precision: what is left of an exact relation is rounding.
    weights, _, rank, _ = np.linalg.lstsq(columns, y, rcond=1e-6)
    return y - columns @ weights, int(rank)
