"""The pair table: one row a pair of tasks, metrics as features, outcomes `<target>_<method>`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mergeability.errors import UserError

TARGETS = ("norm_acc", "acc")
MIN_TASKS = 4

_OUTCOME = re.compile(r"(norm_)?acc_.+")
_NAMED_ROWS = 6


@dataclass(frozen=True)
class PairRows:
    """The rows of a table that have every metric and one outcome.

    `incidence[i, t]` is 1 where pair i contains task t: each row has two ones.
    """

    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    task_a: tuple[str, ...]
    task_b: tuple[str, ...]
    features: Float[np.ndarray, "n m"]
    incidence: Float[np.ndarray, "n T"]
    outcome: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class PairTable:
    """A validated pair table. Only the named metrics are ever features; every other column stays out."""

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def validate(cls, frame: pd.DataFrame, metrics: Sequence[str], outcomes: Sequence[str]) -> "PairTable":
        """Check a table of pairs and keep its task, metric and outcome columns.

        Raises UserError for missing or repeated columns, an outcome named as a metric, text or infinity in a
        number column, a pair given twice or with itself, and fewer than four tasks. A metric without any
        value is left out, with a note.
        """
        _check_columns(frame, metrics, outcomes)
        tasks = _check_pairs(frame)
        numbers = {name: _numbers(frame, name) for name in (*metrics, *outcomes)}
        empty = [name for name in metrics if np.isnan(numbers[name]).all()]
        notes = [f"Metric {name} has no value for any pair and is left out of prediction." for name in empty]
        columns = {"task_a": frame["task_a"].to_numpy(), "task_b": frame["task_b"].to_numpy(), **numbers}
        kept = tuple(name for name in metrics if name not in empty)
        if not kept:
            raise UserError("Prediction needs at least one metric with values: none of those named has any.")
        return cls(pd.DataFrame(columns), kept, tasks, tuple(notes))

    def rows(self, outcome: str, complete_for: Sequence[str] = ()) -> tuple[PairRows, list[str]]:
        """Take the rows with all metrics and this outcome, and name the pairs left out.

        `complete_for` names further outcome columns that a row must have as well.
        """
        needed = [*self.metrics, outcome, *complete_for]
        whole = self.frame[needed].notna().all(axis=1).to_numpy()
        left_out = [
            f"{a}-{b}" for a, b in self.frame.loc[~whole, ["task_a", "task_b"]].itertuples(index=False)
        ]
        kept = self.frame.loc[whole]
        ends = kept[["task_a", "task_b"]].to_numpy()
        incidence = (ends[:, :, None] == np.array(self.tasks, dtype=object)).any(axis=1).astype(np.float64)
        rows = PairRows(
            metrics=self.metrics,
            tasks=self.tasks,
            task_a=tuple(kept["task_a"]),
            task_b=tuple(kept["task_b"]),
            features=kept[list(self.metrics)].to_numpy(dtype=np.float64),
            incidence=incidence,
            outcome=kept[outcome].to_numpy(dtype=np.float64),
        )
        return rows, left_out


def outcome_methods(frame: pd.DataFrame, targets: Sequence[str] = TARGETS) -> list[str]:
    """List the merge methods that a table has outcomes of, in column order.

    A method's two single-task columns end in `_a` and `_b` and are no methods of their own.
    """
    columns = [str(name) for name in frame.columns]
    found: list[str] = []
    for name in columns:
        target = next((target for target in targets if name.startswith(f"{target}_")), None)
        half = name[-2:] in ("_a", "_b") and name[:-2] in columns
        if target and not half and name.removeprefix(f"{target}_") not in found:
            found.append(name.removeprefix(f"{target}_"))
    return found


def summarise_names(names: Sequence[str]) -> str:
    """Join the first few names, and count the rest."""
    shown = ", ".join(names[:_NAMED_ROWS])
    return shown if len(names) <= _NAMED_ROWS else f"{shown} and {len(names) - _NAMED_ROWS} more"


def _check_columns(frame: pd.DataFrame, metrics: Sequence[str], outcomes: Sequence[str]) -> None:
    needed = ["task_a", "task_b", *metrics, *outcomes]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise UserError(
            f"The pair table has no column {summarise_names(missing)}. It has: {summarise_names(list(frame.columns))}."
        )
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]} & set(needed))
    if repeated or len(set(metrics)) < len(metrics):
        names = repeated or sorted({name for name in metrics if list(metrics).count(name) > 1})
        raise UserError(f"Column {summarise_names(names)} is given more than once; keep one of each.")
    if not metrics:
        raise UserError("Prediction needs at least one metric: name some with suite.metrics=[...].")
    leaks = [name for name in metrics if name in outcomes or _OUTCOME.fullmatch(name)]
    if leaks:
        raise UserError(
            f"{summarise_names(leaks)} is an outcome and cannot predict outcomes: name metrics only."
        )


def _check_pairs(frame: pd.DataFrame) -> tuple[str, ...]:
    ends = frame[["task_a", "task_b"]]
    nameless = np.flatnonzero(ends.isna().any(axis=1))
    if len(nameless):
        raise UserError(f"Row {nameless[0] + 1} of the pair table lacks task_a or task_b: name both tasks.")
    pairs = [tuple(pair) for pair in ends.itertuples(index=False, name=None)]
    tasks = tuple(dict.fromkeys(task for pair in zip(*pairs, strict=True) for task in pair)) if pairs else ()
    wrong = next((task for task in tasks if not isinstance(task, str)), None)
    if wrong is not None:
        raise UserError(f"Task names must be text, and {wrong!r} is not: read task_a and task_b as strings.")
    alone = next((a for a, b in pairs if a == b), None)
    if alone is not None:
        raise UserError(f"The pair table pairs '{alone}' with itself: a pair needs two tasks.")
    seen: set[frozenset[str]] = set()
    for a, b in pairs:
        if frozenset((a, b)) in seen:
            raise UserError(
                f"The pair '{a}', '{b}' is in the table more than once (order does not matter): keep one."
            )
        seen.add(frozenset((a, b)))
    if len(tasks) < MIN_TASKS:
        raise UserError(
            f"Prediction leaves tasks out and needs at least {MIN_TASKS}; the pair table has {len(tasks)}. "
            "Add tasks, or leave prediction out."
        )
    return tasks


def _numbers(frame: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    column = frame[name]
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    text = np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy())
    if len(text):
        raise UserError(
            f"Column {name} must hold numbers, and row {text[0] + 1} holds {column.iloc[text[0]]!r}."
        )
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise UserError(
            f"Column {name} is infinite in row {infinite[0] + 1}: leave the cell empty if it is undefined."
        )
    return numbers
