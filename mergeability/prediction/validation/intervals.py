"""Compute conformal prediction intervals for pairs of new tasks, and measure their coverage."""

import math

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

SHARE = 0.9
"""Of the pairs of new tasks that an interval is meant to hold."""


def half_width(residuals: Float[np.ndarray, " n"], level: float | int = SHARE) -> tuple[float, float]:
    """Return the half-width q and the level of a conformal prediction interval.

    q is the ⌈(n + 1)·level⌉-th smallest of the absolute residuals |measured - predicted| of held-out pairs, so that
    the interval predicted ± q contains a new pair with probability `level` (split conformal prediction). Pairs that
    share a task are not exchangeable, so the level is an expectation rather than a guarantee: `conformal_table`
    measures the share covered on tasks that did not determine q.

    Source: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005.

    Args:
        residuals: residuals of held-out pairs, at least 0; NaN is not allowed.
        level: nominal share of pairs inside, in (0, 1).

    Returns:
        q in units of the outcome, and its level. n residuals allow at most n/(n + 1): for a higher level, q is the
        largest residual and the level returned is n/(n + 1). Both are NaN without residuals.

    Examples:
        >>> half_width(np.array([0.3, 0.1, 0.2, 0.4]), 0.6)
        (0.3, 0.6)
    """
    ordered, count = np.sort(residuals), len(residuals)
    if count == 0:
        return float("nan"), float("nan")
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        return float(ordered[-1]), count / (count + 1)
    return float(ordered[rank - 1]), float(level)


def student_interval(values: Float[np.ndarray, " n"], level: float | int = 0.95) -> tuple[float, float]:
    """Return Student's t confidence interval for the mean of independent values, such as results of several seeds.

    Args:
        values: independent numbers.
        level: level of the interval, in (0, 1).

    Returns:
        The lower and the upper end; NaN for fewer than two values.

    Examples:
        >>> low, high = student_interval(np.array([0.0, 1.0, 2.0]))
        >>> round(low, 3), round(high, 3)
        (-1.484, 3.484)
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def transferred_intervals(
    calibration: pd.DataFrame, predictions: pd.DataFrame, level: float | int = SHARE
) -> pd.DataFrame:
    """Calibrate prediction intervals on left-out pairs of some tasks, and measure coverage on other tasks.

    Args:
        calibration: validated pairs of the training tasks.
        predictions: validated pairs of the other tasks.
        level: as in `conformal_table`.

    Returns:
        One row per protocol of `predictions`, target, method and predictor, with the columns of `conformal_table`:
        `half_width` and `level` are those of `calibration`, the rest is of `predictions`.
    """
    rows = []
    keys = ["target", "method", "predictor"]
    known = {key: residuals_of(group) for key, group in calibration.groupby(keys, sort=False)}
    for (protocol, *key), group in predictions.groupby(["protocol", *keys], sort=False):
        width, reached = half_width(known.get(tuple(key), np.empty(0)), level)
        inside = residuals_of(group) <= width
        shares = np.array([inside[own].mean() for own in _rows_by_task(group).values()])
        rows.append(
            {"protocol": protocol}
            | dict(zip(keys, key, strict=True))
            | {
                "tasks": len(shares),
                "level": reached,
                "half_width": width,
                "spread": float(group["measured"].std(ddof=0)),
                "coverage": float("nan") if np.isnan(width) else float(shares.mean()),
                "tasks_covered": float("nan") if np.isnan(width) else float(np.mean(shares >= level)),
            }
        )
    return pd.DataFrame(rows)


def residuals_of(predictions: pd.DataFrame) -> Float[np.ndarray, " n"]:
    """Return the absolute residuals of the validation pairs, in the order of the rows.

    Args:
        predictions: rows with the columns `measured` and `predicted`.
    """
    return (predictions["measured"] - predictions["predicted"]).abs().to_numpy(dtype=float)


def conformal_table(predictions: pd.DataFrame, level: float | int = SHARE) -> pd.DataFrame:
    """Calibrate prediction intervals for every predictor and outcome, and measure their coverage.

    Args:
        predictions: validated pairs, one row per fold and pair.
        level: nominal share of pairs of new tasks inside an interval, in (0, 1).

    Returns:
        One row per protocol, target, method and predictor: `half_width` and its `level`; `spread`, the standard
        deviation of the outcome for comparison; `tasks`, their number. With each task's pairs compared with the
        half-width of the pairs without that task: `coverage`, the mean over tasks of the share inside, and
        `tasks_covered`, the share of tasks with at least `level` of their pairs inside. Both are NaN if every pair has
        the task.
    """
    rows = []
    keys = ["protocol", "target", "method", "predictor"]
    for key, group in predictions.groupby(keys, sort=False):
        off, by_task = residuals_of(group), _rows_by_task(group)
        ends = group[["task_a", "task_b"]].to_numpy()
        width, reached = half_width(off, level)
        inside = []
        for task, own in by_task.items():
            other, _ = half_width(off[(ends != task).all(axis=1)], level)
            inside.append(float("nan") if math.isnan(other) else float(np.mean(off[own] <= other)))
        shares = np.array(inside)
        measured = group.drop_duplicates(["task_a", "task_b"])["measured"]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "tasks": len(by_task),
                "level": reached,
                "half_width": width,
                "spread": float(measured.std(ddof=0)),
                "coverage": float(np.mean(shares)),
                "tasks_covered": float("nan") if np.isnan(shares).any() else float(np.mean(shares >= level)),
            }
        )
    return pd.DataFrame(rows)


def _rows_by_task(predictions: pd.DataFrame) -> dict[str, Int[np.ndarray, " rows"]]:
    """Group the predicted rows by held-out task."""
    found: dict[str, list[int]] = {}
    columns = predictions[["held_out", "task_a", "task_b"]].itertuples(index=False, name=None)
    for row, (held_out, a, b) in enumerate(columns):
        # If one task is left out, the other task of a pair is known; if two are left out, both are held out.
        for task in (held_out,) if held_out in (a, b) else (a, b):
            found.setdefault(task, []).append(row)
    return {task: np.array(rows) for task, rows in found.items()}
