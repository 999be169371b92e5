"""Create tables of the outcomes of merges, with one row per pair or per set of models."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mergeability.evaluation.intervals import mean_interval


def pair_table(accuracies: pd.DataFrame, probes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Convert the outcomes of pairs to a table with one row per pair.

    Columns, for each method m: `acc_m` and `norm_acc_m` (merged accuracy over the fine-tuned model's own), the
    means over the pair's two tasks; `kept_gain_m`, the mean of (merged − base)/(fine-tuned − base), how much of
    what fine-tuning gained survives (NaN if it gained nothing); `alpha_m`, the scale; each task's own
    accuracies with `_a` and `_b`; and, where only part of the images was looked at, the 95 % confidence intervals
    `low_acc_m`, `high_acc_m`, `low_norm_acc_m` and `high_norm_acc_m`. Where merges were probed, `probe_overlap_m` and
    `probe_confidence_m`, means over the two tasks' unlabelled images, of the plain average too.

    Returns:
        A table indexed by (task_a, task_b).
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for (_, method), group in _by_merge(accuracies):
        row = rows.setdefault(tuple(group["task"]), {})
        row[f"acc_{method}"] = group["accuracy"].mean()
        row[f"norm_acc_{method}"] = group["norm_accuracy"].mean(skipna=False)
        row[f"kept_gain_{method}"] = group["kept_gain"].mean(skipna=False)
        for side, (_, of_task) in zip("ab", group.iterrows(), strict=True):
            row[f"acc_{method}_{side}"] = of_task["accuracy"]
            row[f"norm_acc_{method}_{side}"] = of_task["norm_accuracy"]
        row |= _intervals(group, method)
        row[f"alpha_{method}"] = group["alpha"].iloc[0]
    for (_, method), group in _by_merge(probes):
        rows.setdefault(tuple(group["task"]), {}).update(_probed(group, method))
    index = pd.MultiIndex.from_tuples(list(rows), names=["task_a", "task_b"])
    return pd.DataFrame(list(rows.values()), index=index)


def set_table(accuracies: pd.DataFrame, probes: pd.DataFrame | None = None) -> pd.DataFrame:
    """Arrange outcomes as one row per set: `tasks`, `arity`, and for each method m the means over the set's tasks
    `acc_m`, `norm_acc_m` and `kept_gain_m`, the normalised accuracy of the set's worst task `worst_norm_acc_m`, and
    `alpha_m`; and the columns of probes, as pairs have them.
    """  # noqa: D205
    rows: dict[str, dict[str, Any]] = {}
    for (tasks, method), group in _by_merge(accuracies):
        row = rows.setdefault(tasks, {"tasks": tasks, "arity": len(group)})
        row[f"acc_{method}"] = group["accuracy"].mean()
        row[f"norm_acc_{method}"] = group["norm_accuracy"].mean(skipna=False)
        row[f"worst_norm_acc_{method}"] = group["norm_accuracy"].min()
        row[f"kept_gain_{method}"] = group["kept_gain"].mean(skipna=False)
        row |= _intervals(group, method)
        row[f"alpha_{method}"] = group["alpha"].iloc[0]
    for (tasks, method), group in _by_merge(probes):
        rows.setdefault(tasks, {"tasks": tasks, "arity": len(group)}).update(_probed(group, method))
    return pd.DataFrame(list(rows.values()))


def _by_merge(table: pd.DataFrame | None) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    if table is not None and len(table):
        for (tasks, method), group in table.groupby(["tasks", "method"], sort=False):
            yield (str(tasks), str(method)), group


def _probed(group: pd.DataFrame, method: str) -> dict[str, float]:
    return {f"{name}_{method}": float(group[name].mean()) for name in ("probe_overlap", "probe_confidence")}


def _intervals(group: pd.DataFrame, method: str) -> dict[str, float]:
    """Return the confidence intervals of a merge's means, where only part of the images was looked at."""
    found = {}
    for target, name in (("acc", "accuracy"), ("norm_acc", "norm_accuracy")):
        if f"{name}_variance" in group and group[f"{name}_variance"].notna().all():
            low, high = mean_interval(group[name].tolist(), group[f"{name}_variance"].tolist())
            found |= {f"low_{target}_{method}": low, f"high_{target}_{method}": high}
    return found
