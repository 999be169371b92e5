"""What a method listens to: its fold-averaged coefficients, compared between methods."""

from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

TOP = 5


def fingerprints(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Compare the fold-averaged coefficients of every two methods: one row per pair of methods.

    `coefficients` has the columns `method`, `metric` and `coefficient`, one row a fold and metric, of one
    predictor and one target. The result has `method_a`, `method_b`, `top5_overlap` and `sign_agreement`,
    shares in [0, 1] over the metrics that both methods have, NaN where they have none.
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
    """Share of metrics among the `top` largest |w| of both: |top(a) ∩ top(b)| / top, in [0, 1].

    Zero coefficients select nothing and never count. With fewer than `top` metrics, all of them are compared;
    NaN of none.
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
    """Share of metrics whose coefficients have equal sign (0 equals 0 only), in [0, 1]; NaN of none."""
    return float(np.mean(np.sign(first) == np.sign(second))) if len(first) else float("nan")
