"""Check the pair table: one row per pair of tasks, metrics as features, outcomes in `<target>_<method>`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mergeability.errors import UserError, short, shown

TARGETS = ("norm_acc", "acc")
MIN_TASKS = 4

_OUTCOME = re.compile(r"(norm_)?acc_.+")
_NAMED_ROWS = 6
# Tolerance for float32 values outside their range because of rounding.
_SLACK = 1e-5


@dataclass(frozen=True)
class PairRows:
    """Hold the rows of a pair table in which no metric and no value of one chosen outcome is missing.

    Attributes:
        metrics: names of the m columns of features.
        tasks: the T tasks of the whole table.
        ends: the two tasks of each pair, (n, 2).
        features: metrics of each pair.
        incidence: entry (i, t) is 1 if pair i contains task t, else 0.
        outcome: one number per pair, in outcome units.
    """

    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    ends: np.ndarray
    features: Float[np.ndarray, "n m"]
    incidence: Float[np.ndarray, "n T"]
    outcome: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class PairTable:
    """Hold a checked pair table and the names of the metrics that are its features.

    Functions of this package that take a data frame convert it with `of` and pass the result on, so that a table is
    checked once.

    Attributes:
        frame: task names, and the checked columns as numbers, NaN for an empty cell.
        metrics: columns used as features, without those that have no value.
        tasks: in order of appearance.
        notes: sentences about excluded metrics.

    Examples:
        >>> from mergeability.prediction import PairTable
        >>> from mergeability.prediction.examples import example_pairs
        >>> table = PairTable.validate(example_pairs(), ["cosine", "distance"], ["norm_acc_ties"])
        >>> table.tasks
        ('cars', 'dtd', 'gtsrb', 'mnist', 'sun397', 'svhn')
        >>> rows, left_out = table.rows("norm_acc_ties")
        >>> rows.features.shape, rows.incidence.shape, left_out
        ((15, 2), (15, 6), [])
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    tasks: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def validate(
        cls,
        frame: pd.DataFrame,
        metrics: Sequence[str],
        outcomes: Sequence[str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> "PairTable":
        """Check a table of pairs and keep its task, metric and outcome columns.

        Args:
            frame: one row per pair.
            metrics: columns used as features. A metric without any value is left out, with a note.
            outcomes: names of outcome columns, all of them present.
            ranges: metric → its lowest and highest value.

        Returns:
            The checked table.

        Raises:
            UserError: columns are missing or repeated, an outcome is named as a metric, a number column contains text
                or infinity, a metric is outside its range, a pair is repeated or pairs a task with itself, or there
                are fewer than four tasks.
        """
        _check_columns(frame, metrics, outcomes)
        tasks = _check_pairs(frame)
        numbers = {name: numbers_in(frame, name) for name in (*metrics, *outcomes)}
        for name in metrics:
            _check_range(frame, name, numbers[name], (ranges or {}).get(name))
        columns = {"task_a": frame["task_a"].to_numpy(), "task_b": frame["task_b"].to_numpy(), **numbers}
        checked = pd.DataFrame(columns)
        return cls(checked, *_with_values(checked, metrics, tasks))

    @classmethod
    def of(
        cls,
        table: "pd.DataFrame | PairTable",
        metrics: Sequence[str],
        methods: Sequence[str],
        targets: Sequence[str] = TARGETS,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        also: Sequence[str] = (),
    ) -> "PairTable":
        """Check a data frame and keep all outcomes that it contains; a `PairTable` is not checked again.

        Args:
            table: one row per pair.
            metrics: columns used as features.
            methods: merge methods.
            targets: outcomes of each method, `norm_acc` or `acc`.
            ranges: metric → its lowest and highest value; a checked table is not checked again.
            also: further number columns to keep if they have values; they are not features.

        Returns:
            The checked table.

        Raises:
            UserError: for the reasons given in `validate`.
        """
        if isinstance(table, PairTable):
            return table.select(metrics)
        outcomes = [f"{target}_{method}" for target in targets for method in methods]
        present = [name for name in outcomes if name in table.columns]
        extra = [
            name
            for name in also
            if name not in metrics and name in table.columns and table[name].notna().to_numpy().any()
        ]
        return cls.validate(table, metrics, [*present, *extra], ranges)

    def select(self, metrics: Sequence[str], outcomes: Sequence[str] | None = None) -> "PairTable":
        """Select the columns used as metrics and, if `outcomes` is given, the outcome columns to keep.

        Args:
            metrics: columns used as features.
            outcomes: outcome columns to keep; all columns when None.

        Raises:
            UserError: a column is missing, or no metric has a value.
        """
        _check_columns(self.frame, metrics, outcomes or ())
        frame = self.frame
        if outcomes is not None:
            frame = frame[["task_a", "task_b", *metrics, *outcomes]]
        return PairTable(frame, *_with_values(frame, metrics, self.tasks))

    def complete_metrics(self) -> "PairTable":
        """Drop pairs with undefined metrics, so that fits on fewer metrics use the same pairs.

        Raises:
            UserError: fewer than four tasks are left.
        """
        frame = self.frame[self.frame[list(self.metrics)].notna().all(axis=1)]
        tasks = task_order(frame[["task_a", "task_b"]].to_numpy(dtype=object))
        _check_count(tasks)
        return replace(self, frame=frame, tasks=tasks)

    @property
    def ends(self) -> np.ndarray:
        """The two tasks of each pair, as an array of shape (n, 2)."""
        return self.frame[["task_a", "task_b"]].to_numpy(dtype=object)

    def usable(self, outcome: str, complete_for: Sequence[str] = ()) -> Bool[np.ndarray, " n"]:
        """Return a mask of the rows that have values in every metric, `outcome` and every column of `complete_for`."""
        return self.frame[[*self.metrics, outcome, *complete_for]].notna().all(axis=1).to_numpy()

    def rows(self, outcome: str, complete_for: Sequence[str] = ()) -> tuple[PairRows, list[str]]:
        """Return the rows without undefined values, and the names of the pairs that are left out.

        Args:
            outcome: name of a column.
            complete_for: further columns that must have a value.

        Returns:
            The rows, and one text `a-b` per pair left out.
        """
        whole = self.usable(outcome, complete_for)
        left_out = [f"{a}-{b}" for a, b in self.ends[~whole]]
        kept = self.frame.loc[whole]
        ends = self.ends[whole]
        rows = PairRows(
            metrics=self.metrics,
            tasks=self.tasks,
            ends=ends,
            features=kept[list(self.metrics)].to_numpy(dtype=np.float64),
            incidence=incidence(ends, self.tasks),
            outcome=kept[outcome].to_numpy(dtype=np.float64),
        )
        return rows, left_out


FINETUNED = "finetuned_accuracy"
"""The column with the mean of the two fine-tuned models' own accuracies: the baseline that looks at no pair."""


def chosen_methods(
    table: pd.DataFrame | PairTable, methods: Sequence[str] | None, targets: Sequence[str]
) -> list[str]:
    """Return the requested merge methods, or all methods for which the table contains outcomes.

    Args:
        table: the pairs.
        methods: merge methods; those the table has outcomes of when None.
        targets: `norm_acc`, `acc` or both.

    Returns:
        Names of merge methods.

    Raises:
        UserError: there is no target, or an unknown one.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        raise UserError(
            f"Expected a target among {', '.join(TARGETS)}, got {summarise_names(unknown) or 'none'}."
        )
    frame = table.frame if isinstance(table, PairTable) else table
    return outcome_methods(frame, targets) if methods is None else list(methods)


def outcome_methods(frame: pd.DataFrame, targets: Sequence[str] = TARGETS) -> list[str]:
    """List the merge methods for which a table contains outcomes, in column order.

    A method's two single-task columns end in `_a` and `_b` and do not count as methods.
    """
    columns = [str(name) for name in frame.columns]
    found: list[str] = []
    for name in columns:
        target = next((target for target in targets if name.startswith(f"{target}_")), None)
        half = name[-2:] in ("_a", "_b") and name[:-2] in columns
        if target and not half and name.removeprefix(f"{target}_") not in found:
            found.append(name.removeprefix(f"{target}_"))
    return found


def incidence(groups: Any, tasks: Sequence[str]) -> Float[np.ndarray, "n T"]:
    """Return the incidence matrix of pairs: entry (i, t) is 1 if pair i contains task t, so each row has two ones.

    Args:
        groups: the two tasks of each pair, (n, 2).
        tasks: the T tasks, in the order of the columns.

    Returns:
        A matrix of zeros and ones.
    """
    ends = np.asarray(groups, dtype=object).reshape(-1, 2)
    return (ends[:, :, None] == np.array(tasks, dtype=object)).any(axis=1).astype(np.float64)


def task_order(groups: Any) -> tuple[str, ...]:
    """List the tasks: first the tasks of the first column in order of appearance, then the other tasks."""
    ends = np.asarray(groups, dtype=object).reshape(-1, 2)
    return tuple(dict.fromkeys(ends.T.ravel().tolist()))


def summarise_names(names: Sequence[str]) -> str:
    """Join the first few names, shorten long names, and append the number of names left out."""
    first = ", ".join(short(str(name)) for name in names[:_NAMED_ROWS])
    return first if len(names) <= _NAMED_ROWS else f"{first} and {len(names) - _NAMED_ROWS} more"


def _with_values(
    frame: pd.DataFrame, metrics: Sequence[str], tasks: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the metrics that have values, the tasks, and a note on every metric that has no value."""
    kept = tuple(name for name in metrics if frame[name].notna().any())
    if not kept:
        raise UserError(
            "Prediction requires at least one metric with values, but all requested metrics are empty."
        )
    empty = [name for name in metrics if name not in kept]
    notes = [f"Metric {name} has no value for any pair and is left out of prediction." for name in empty]
    return kept, tasks, tuple(notes)


def _check_columns(frame: pd.DataFrame, metrics: Sequence[str], outcomes: Sequence[str]) -> None:
    needed = ["task_a", "task_b", *metrics, *outcomes]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise UserError(
            f"The pair table has no column {summarise_names(missing)}. It has:"
            f" {summarise_names(list(frame.columns))}."
        )
    repeated = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]} & set(needed))
    if repeated or len(set(metrics)) < len(metrics):
        names = repeated or sorted({name for name in metrics if list(metrics).count(name) > 1})
        raise UserError(f"Column {summarise_names(names)} occurs more than once. Give every column once.")
    if not metrics:
        raise UserError(
            "Prediction requires at least one metric. Give names of columns, as the argument `metrics` or as"
            " suite.metrics=[...]."
        )
    leaks = [name for name in metrics if name in outcomes or _OUTCOME.fullmatch(name)]
    if leaks:
        raise UserError(
            f"{summarise_names(leaks)} is an outcome, but only metrics can predict outcomes. Give only"
            " columns that are metrics."
        )


def _check_pairs(frame: pd.DataFrame) -> tuple[str, ...]:
    ends = frame[["task_a", "task_b"]]
    nameless = np.flatnonzero(ends.isna().any(axis=1))
    if len(nameless):
        raise UserError(
            f"Row {nameless[0] + 1} of the pair table has no task_a or no task_b. Name both tasks."
        )
    pairs = [tuple(pair) for pair in ends.itertuples(index=False, name=None)]
    wrong = next((task for pair in pairs for task in pair if not isinstance(task, str)), None)
    if wrong is not None:
        raise UserError(
            f"Expected task names to be text, got {wrong!r}. Read the columns task_a and task_b as strings."
        )
    tasks = task_order(ends.to_numpy(dtype=object))
    alone = next((a for a, b in pairs if a == b), None)
    if alone is not None:
        raise UserError(
            f"The pair table contains a pair of '{alone}' with itself. A pair needs two different tasks."
        )
    seen: set[frozenset[str]] = set()
    for a, b in pairs:
        if frozenset((a, b)) in seen:
            raise UserError(
                f"The pair '{a}', '{b}' is in the table more than once (order does not matter). Keep one of"
                " the rows."
            )
        seen.add(frozenset((a, b)))
    _check_count(tasks)
    return tasks


def _check_count(tasks: Sequence[str]) -> None:
    if len(tasks) < MIN_TASKS:
        raise UserError(
            f"Prediction leaves tasks out, so it requires at least {MIN_TASKS}, but the pair table has"
            f" {len(tasks)}. Add tasks, or disable prediction."
        )


def numbers_in(frame: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    """Read a column as numbers, NaN for an empty cell.

    Raises:
        UserError: a cell contains text or infinity.
    """
    column = frame[name]
    if pd.api.types.is_bool_dtype(column):
        # pandas treats True as 1.
        column = column.astype(str)
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    text = np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy())
    if len(text):
        raise UserError(
            f"Expected numbers in column {short(name)}, got {shown(column.iloc[text[0]])} in row {text[0] + 1}."
        )
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise UserError(
            f"Column {short(name)} is infinite in row {infinite[0] + 1}. If the value is undefined, leave the"
            " cell empty."
        )
    return numbers


def _check_range(
    frame: pd.DataFrame, name: str, numbers: Float[np.ndarray, " n"], bounds: tuple[float, float] | None
) -> None:
    if bounds is None:
        return
    low, high = bounds
    slack = _SLACK * (high if np.isfinite(high) else 1.0)
    outside = np.flatnonzero((numbers < low - slack) | (numbers > high + slack))
    if len(outside):
        row = outside[0]
        a, b = frame["task_a"].iloc[row], frame["task_b"].iloc[row]
        raise UserError(
            f"Column {short(name)} contains {numbers[row]:.6g} for {a} and {b} (row {row + 1}), outside the"
            f" metric's range [{low:g}, {high:g}]. Correct the value, or choose other metrics."
        )
