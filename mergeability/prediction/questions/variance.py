"""Split the variance of outcomes into a part explained by task effects, a part added by metrics, and a residual."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.scaling import RangeScaler


def variance_split(table: PairTable, outcomes: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Split the variance of each outcome into a part from task effects, a part added by metrics, and a residual.

    `task_effects` is R² of y = μ + u_a + u_b. `beyond_raw` is the gain of R² when the metrics are added. Every column
    explains something by chance; `metrics_beyond` is this gain corrected for the number of columns, as in adjusted R²,
    at least 0. `residual` is the rest, so the three shares sum to 1. All are least-squares fits to the rows
    themselves, not predictions.

    Args:
        table: the pairs.
        outcomes: (target, method) of each outcome.

    Returns:
        One row per target and method: `target`, `method`, `n_pairs`, `task_effects`, `metrics_beyond`, `residual`,
        `beyond_raw`. Shares are NaN if the outcome is constant or there are not more pairs than columns.
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
    """Fit y = μ + columns · w by least squares; return the residuals and the rank of the design matrix."""
    columns = np.hstack([np.ones((len(y), 1)), columns])
    # Metrics have single precision, so smaller residuals of an exact relation are rounding.
    weights, _, rank, _ = np.linalg.lstsq(columns, y, rcond=1e-6)
    return y - columns @ weights, int(rank)
