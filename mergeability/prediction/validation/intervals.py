"""How far a prediction may be off: split-conformal intervals over tasks, and whether they hold."""

import math

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

SHARE = 0.9
"""Of a new task's pairs that an interval is meant to hold."""


def task_scores(predictions: pd.DataFrame, share: float | int = SHARE) -> Float[np.ndarray, " T"]:
    """Score each task by how far its own pairs were predicted off: the `share` quantile of |measured - predicted|.

    A task's pairs are those of the fold that left it out; of folds with two tasks left out, all with that task.
    """
    off = (predictions["measured"] - predictions["predicted"]).abs().to_numpy(dtype=float)
    return np.array([_quantile(off[rows], share) for rows in _rows_by_task(predictions).values()])


def half_width(scores: Float[np.ndarray, " T"], level: float | int = SHARE) -> tuple[float, float]:
    """Return q, and the level that it has: for a new task, `share` of its pairs lie within ±q at that level.

    q is the ⌈(T + 1)·level⌉-th smallest score. No more than T/(T + 1) can be promised from T tasks: where more is
    asked for, q is the largest score and the level returned is that. Vovk et al., 2005; tasks take the place of
    exchangeable observations, since pairs are not.
    """
    ordered, count = np.sort(scores), len(scores)
    if count == 0:
        return float("nan"), float("nan")
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        return float(ordered[-1]), count / (count + 1)
    return float(ordered[rank - 1]), float(level)


def conformal_table(predictions: pd.DataFrame, level: float | int = SHARE) -> pd.DataFrame:
    """Calibrate every predictor and outcome, and measure what the intervals cover.

    One row a protocol, target, method and predictor: `half_width` and its `level`, `spread`, the standard deviation of
    the outcome for comparison, `tasks`; and, with the half-width from all tasks but one, of the pairs of that one:
    `coverage`, the mean share inside, and `tasks_covered`, the share of tasks with at least 90 % of them inside.
    """
    rows = []
    keys = ["protocol", "target", "method", "predictor"]
    for key, group in predictions.groupby(keys, sort=False):
        by_task = _rows_by_task(group)
        off = (group["measured"] - group["predicted"]).abs().to_numpy(dtype=float)
        scores = np.array([_quantile(off[rows], SHARE) for rows in by_task.values()])
        width, reached = half_width(scores, level)
        inside = []
        for index, own in enumerate(by_task.values()):
            other, _ = half_width(np.delete(scores, index), level)
            inside.append(float(np.mean(off[own] <= other)))
        measured = group.drop_duplicates(["task_a", "task_b"])["measured"]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "tasks": len(scores),
                "level": reached,
                "half_width": width,
                "spread": float(measured.std(ddof=0)),
                "coverage": float(np.mean(inside)),
                "tasks_covered": float(np.mean(np.array(inside) >= SHARE)),
            }
        )
    return pd.DataFrame(rows)


def _rows_by_task(predictions: pd.DataFrame) -> dict[str, Int[np.ndarray, " rows"]]:
    """Give each held-out task the rows that were predicted while it was held out."""
    found: dict[str, list[int]] = {}
    columns = predictions[["held_out", "task_a", "task_b"]].itertuples(index=False, name=None)
    for row, (held_out, a, b) in enumerate(columns):
        # Either one of the two was left out, beside its known partner, or both were.
        for task in (held_out,) if held_out in (a, b) else (a, b):
            found.setdefault(task, []).append(row)
    return {task: np.array(rows) for task, rows in found.items()}


def _quantile(values: Float[np.ndarray, " n"], share: float | int) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    return float(np.sort(values)[math.ceil(share * len(values) - 1e-9) - 1])
