"""Summarise coefficients over folds, and find metrics whose coefficients have the same sign for all methods."""

import pandas as pd

from mergeability.prediction.validation.folds import TASK_PREFIX

CORE_SHARE = 0.8
"""A core metric is selected in at least this share of a method's folds."""


def coefficient_table(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Compute statistics of the coefficients of metrics over folds.

    Args:
        coefficients: columns `target`, `predictor`, `method`, `held_out`, `metric` and `coefficient`, one row per fold
            and metric.

    Returns:
        One row per target, predictor, method and metric: `mean` and population `std` over folds, `selected`, the share
        of folds with w ≠ 0, and `contribution`, |mean w| / Σ|mean w| over the metrics, in [0, 1].
    """
    keys = ["target", "predictor", "method"]
    metrics = coefficients[~coefficients["metric"].astype(str).str.startswith(TASK_PREFIX)]
    if metrics.empty:
        return pd.DataFrame(columns=[*keys, "metric", "mean", "std", "selected", "contribution"])
    groups = metrics.groupby([*keys, "metric"], sort=False)["coefficient"]
    table = pd.DataFrame(
        {
            "mean": groups.mean(),
            "std": groups.std(ddof=0),
            "selected": (metrics["coefficient"] != 0)
            .groupby([metrics[key] for key in [*keys, "metric"]], sort=False)
            .mean(),
        }
    ).reset_index()
    total = table["mean"].abs().groupby([table[key] for key in keys]).transform("sum")
    # If all weights are 0, all contributions are 0.
    return table.assign(contribution=(table["mean"].abs() / total.where(total > 0)).fillna(0.0))


def stable_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Find the metrics whose mean coefficient has the same sign for all methods.

    Args:
        table: the result of `coefficient_table`.

    Returns:
        One row per target, predictor and metric: `sign` (+1, -1, or 0 if signs differ or a mean is 0), `stable`,
        `least_selected` and `core` (stable, and selected in at least 80 % of every method's folds), and
        `contribution`, the mean over methods; the largest contribution first.
    """
    columns = ["target", "predictor", "metric", "sign", "stable", "core", "least_selected", "contribution"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    rows = []
    for (target, predictor, metric), group in table.groupby(["target", "predictor", "metric"], sort=False):
        positive, negative = bool((group["mean"] > 0).all()), bool((group["mean"] < 0).all())
        least = float(group["selected"].min())
        rows.append(
            {
                "target": target,
                "predictor": predictor,
                "metric": metric,
                "sign": int(positive) - int(negative),
                "stable": positive or negative,
                "core": (positive or negative) and least >= CORE_SHARE,
                "least_selected": least,
                "contribution": float(group["contribution"].mean()),
            }
        )
    ordered = pd.DataFrame(rows, columns=columns)
    return ordered.sort_values(
        ["target", "predictor", "contribution"],
        ascending=[False, True, False],
        kind="stable",
        ignore_index=True,
    )
