"""Compare fingerprints of merge methods: the coefficients of a predictor, averaged over folds."""

from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

TOP = 5


def fingerprints(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Compute each method's mean coefficients over folds, and compare these means for every pair of methods.

    Args:
        coefficients: columns `method`, `metric` and `coefficient`, one row per fold and metric, of one predictor and
            one target.

    Returns:
        One row per pair of methods: `method_a`, `method_b`, `top5_overlap` and `sign_agreement`, shares in [0, 1] of
        the metrics that both methods have; NaN if they have none in common.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.prediction import fingerprints
        >>> coefficients = pd.DataFrame(
        ...     {
        ...         "method": ["ties", "ties", "dare", "dare"],
        ...         "metric": ["cosine", "distance", "cosine", "distance"],
        ...         "coefficient": [0.5, -0.2, 0.4, 0.1],
        ...     }
        ... )
        >>> fingerprints(coefficients).values.tolist()
        [['ties', 'dare', 1.0, 0.5]]
    """
    columns = ["method_a", "method_b", "top5_overlap", "sign_agreement"]
    if coefficients.empty:
        return pd.DataFrame(columns=columns)
    means = coefficients.pivot_table(index="metric", columns="method", values="coefficient", sort=False)
    rows = []
    for a, b in combinations(means.columns, 2):
        both = means[[a, b]].dropna().to_numpy()
        rows.append((a, b, top_overlap(both[:, 0], both[:, 1]), sign_agreement(both[:, 0], both[:, 1])))
    return pd.DataFrame(rows, columns=columns)


def top_overlap(first: Float[np.ndarray, " m"], second: Float[np.ndarray, " m"], top: int = TOP) -> float:
    """Return the overlap, in [0, 1], between the `top` metrics (those with the largest |w|) of two methods.

    Zero coefficients are never among the largest. With fewer than `top` metrics, all of them are compared; the share
    is NaN without any metric.
    """
    top = min(top, len(first))
    if top == 0:
        return float("nan")
    chosen = [
        {int(i) for i in np.argsort(-np.abs(weights), kind="stable")[:top] if weights[i] != 0}
        for weights in (first, second)
    ]
    return len(chosen[0] & chosen[1]) / top


def sign_agreement(first: Float[np.ndarray, " m"], second: Float[np.ndarray, " m"]) -> float:
    """Return the share of metrics whose two coefficients have equal signs.

    A coefficient of 0 matches only 0. The share is NaN without any metric.
    """
    return float(np.mean(np.sign(first) == np.sign(second))) if len(first) else float("nan")
