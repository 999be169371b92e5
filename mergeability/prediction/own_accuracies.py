"""Find the single-task accuracies of the models in a pair table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.prediction.pair_table import (
    FINETUNED,
    numbers_in,
    outcome_methods,
    summarise_names,
    task_order,
)
from mergeability.prediction.predictors.own_evidence import ZERO_SHOT_RATIO

BASE = "base_accuracy"
"""With the endings `_a` and `_b`, as for `FINETUNED`: the columns with each model's own accuracy."""

# Tolerance for accuracies that were rounded to float32.
_SAME = 1e-6


def with_finetuned_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the column `finetuned_accuracy`: the mean accuracy of the two fine-tuned models, NaN if unknown.

    They are the columns `finetuned_accuracy_a` and `finetuned_accuracy_b`; missing values are derived from the
    outcomes if possible (`implied_accuracies`). An existing column is kept.

    Args:
        frame: one row per pair.

    Returns:
        The table with the column, if any value is known.

    Raises:
        UserError: for the reasons given in `given_accuracies`.
    """
    ends = frame.get(["task_a", "task_b"])
    if FINETUNED in frame.columns or ends is None or ends.isna().any(axis=None):
        # Validation of the table later reports missing tasks with their rows.
        return frame
    own = finetuned_accuracies(frame)
    return frame.assign(**{FINETUNED: _means(frame, own)}) if own else frame


def with_zero_shot_ratio(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add the column `zero_shot_ratio`: base accuracy / fine-tuned accuracy, averaged over the pair's two tasks.

    Base accuracies are the columns `base_accuracy_a` and `base_accuracy_b`; fine-tuned accuracies are those of
    `with_finetuned_accuracy`. If only some models have both, other pairs have an empty cell. Values of an existing
    column are kept.

    >>> pairs = pd.DataFrame({"task_a": ["cars", "cars"], "task_b": ["dtd", "svhn"]})
    >>> pairs[["base_accuracy_a", "base_accuracy_b"]] = [[0.6, 0.4], [0.6, 0.5]]
    >>> pairs[["finetuned_accuracy_a", "finetuned_accuracy_b"]] = [[0.8, 0.8], [0.8, 1.0]]
    >>> with_zero_shot_ratio(pairs)[0]["zero_shot_ratio"].tolist()
    [0.625, 0.625]

    Args:
        frame: one row per pair, with `task_a` and `task_b`.

    Returns:
        The table, and sentences that count and name the models without a ratio.

    Raises:
        UserError: for the reasons given in `given_accuracies`, or an existing column contradicts the accuracies.
    """
    base = given_accuracies(frame, BASE)
    if f"{BASE}_a" not in frame.columns:
        return frame, []
    tuned = finetuned_accuracies(frame)
    tasks = [task for task in task_order(frame[["task_a", "task_b"]]) if not pd.isna(task)]
    ratios = {task: base[task] / tuned[task] for task in tasks if task in base and tuned.get(task, 0) > 0}
    values = _means(frame, ratios)
    if ZERO_SHOT_RATIO in frame.columns:
        values = _filled(frame, values)
    notes = _unknown(tasks, base, tuned, values)
    return (frame if np.isnan(values).all() else frame.assign(**{ZERO_SHOT_RATIO: values})), notes


def finetuned_accuracies(frame: pd.DataFrame) -> dict[str, float]:
    """Return task → fine-tuned accuracy, from columns or, for tasks without a value, computed from outcomes.

    Args:
        frame: one row per pair.

    Returns:
        The known accuracies, in [0, 1].

    Raises:
        UserError: for the reasons given in `given_accuracies`.
    """
    given = given_accuracies(frame, FINETUNED)
    return {**implied_accuracies(frame), **given}


def given_accuracies(frame: pd.DataFrame, kind: str) -> dict[str, float]:
    """Return task → accuracy from the columns `<kind>_a` and `<kind>_b`; each model needs a value in at least one row.

    Args:
        frame: one row per pair.
        kind: `base_accuracy` or `finetuned_accuracy`.

    Returns:
        The known accuracies.

    Raises:
        UserError: one of the two columns is missing, a value is not a number in [0, 1], or two rows contradict each
            other.
    """
    columns = {f"{kind}_a": "task_a", f"{kind}_b": "task_b"}
    there = [name for name in columns if name in frame.columns]
    if len(there) == 1:
        (absent,) = columns.keys() - there
        raise UserError(
            f"Expected the columns {kind}_a and {kind}_b, one for each task of a pair, got only {there[0]}."
            f" Add {absent}, or remove {there[0]}."
        )
    found: dict[str, tuple[float, str]] = {}
    for name in there:
        tasks, values = frame[columns[name]], numbers_in(frame, name)
        for row in np.flatnonzero(~np.isnan(values) & tasks.notna().to_numpy()):
            task, value = tasks.iloc[row], float(values[row])
            if not 0 <= value <= 1:
                raise UserError(
                    f"Expected accuracies in [0, 1] in column {name}, got {value:g} for {task} (row"
                    f" {row + 1}). Give 65 % as 0.65."
                )
            first, place = found.setdefault(task, (value, f"row {row + 1}, {name}"))
            if abs(first - value) > _SAME:
                raise UserError(
                    f"Expected one {kind} for {task}, got {first:g} ({place}) and {value:g} (row {row + 1},"
                    f" {name}). Correct one of the two values."
                )
    return {task: value for task, (value, _) in found.items()}


def implied_accuracies(frame: pd.DataFrame) -> dict[str, float]:
    """Compute task → fine-tuned accuracy from the outcomes; return {} if they do not determine the accuracies.

    `norm_acc` is the mean of acc_a/f_a and acc_b/f_b, linear in 1/f, so all pairs of a method together determine the
    tasks' own accuracies f. They are used only if every pair agrees with them to six digits.

    Args:
        frame: one row per pair.

    Returns:
        The accuracies f of all tasks, or none.
    """
    ends = frame[["task_a", "task_b"]]
    if ends.isna().any(axis=None):
        return {}
    for method in outcome_methods(frame):
        columns = [f"acc_{method}_a", f"acc_{method}_b", f"norm_acc_{method}"]
        if not set(columns) <= set(frame.columns):
            continue
        tasks = task_order(ends.to_numpy(dtype=object))
        values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        known = np.isfinite(values).all(axis=1)
        place = {task: i for i, task in enumerate(tasks)}
        halves = np.zeros((len(frame), len(tasks)))
        for row, (a, b) in enumerate(ends.itertuples(index=False, name=None)):
            halves[row, place[a]] += values[row, 0] / 2
            halves[row, place[b]] += values[row, 1] / 2
        if known.sum() <= len(tasks) or not (halves[known] != 0).any(axis=0).all():
            continue
        inverse, _, rank, _ = np.linalg.lstsq(halves[known], values[known, 2], rcond=None)
        agrees = np.abs(halves[known] @ inverse - values[known, 2]).max() < 1e-6
        if rank == len(tasks) and agrees and (inverse > 0).all():
            return dict(zip(tasks, (1 / inverse).tolist(), strict=True))
    return {}


def _means(frame: pd.DataFrame, of_models: Mapping[str, float]) -> np.ndarray:
    """Average a number of each model over the pairs; NaN if one is unknown."""
    known = dict(of_models)
    first, second = (
        np.array([known.get(task, np.nan) for task in frame[end]], dtype=np.float64)
        for end in ("task_a", "task_b")
    )
    return (first + second) / 2


def _filled(frame: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """Keep the ratios in the table, and fill empty cells with computed ones."""
    given = numbers_in(frame, ZERO_SHOT_RATIO)
    differs = np.flatnonzero(np.abs(given - values) > _SAME)
    if len(differs):
        row = differs[0]
        raise UserError(
            f"Expected the column {ZERO_SHOT_RATIO} to agree with the accuracies of the models, got"
            f" {given[row]:g} instead of {values[row]:g} in row {row + 1}. Remove the column, or correct the"
            " accuracies."
        )
    return np.where(np.isnan(given), values, given)


def _unknown(
    tasks: Sequence[str], base: Mapping[str, float], tuned: Mapping[str, float], values: np.ndarray
) -> list[str]:
    """Count the pairs without a ratio, and list the models that cause them."""
    count = int(np.isnan(values).sum())
    if not count:
        return []
    lacking = {
        "no base accuracy": [task for task in tasks if task not in base],
        "no fine-tuned accuracy": [task for task in tasks if task not in tuned],
        "a fine-tuned accuracy of 0": [task for task in tasks if tuned.get(task) == 0],
    }
    reasons = [
        f"{what} for {summarise_names(names)} ({len(names)} of {len(tasks)} models)"
        for what, names in lacking.items()
        if names
    ]
    return [f"{ZERO_SHOT_RATIO} is unknown for {count} of {len(values)} pairs: {'; '.join(reasons)}."]
