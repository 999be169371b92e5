"""Who may be predicted from whom: splitters over a pair table, in scikit-learn's style.

A pair belongs to two tasks at once, so ordinary cross-validation would leave both of a pair's tasks in the
training rows. A protocol has a `name` and a `split(table)` that yields one `(held_out, training_rows,
validation_rows)` a fold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from mergeability.prediction.table import PairRows

Split = tuple[str, Int[np.ndarray, " training"], Int[np.ndarray, " validation"]]


@runtime_checkable
class SplitProtocol(Protocol):
    """Anything that splits pair rows into named folds."""

    name: ClassVar[str]

    def split(self, rows: PairRows) -> Iterator[Split]:
        """Yield (held out, training rows, validation rows)."""
        ...


@dataclass(frozen=True)
class LeaveOneTaskOut:
    """Train on the pairs without one task and validate on the pairs with it; one fold a task.

    With all pairs of T tasks: (T-1)(T-2)/2 training and T-1 validation pairs a fold (171 and 19 for T = 20).
    A task without any row gives no fold, nor does one that leaves no training row.
    """

    name: ClassVar[str] = "loto"

    def split(self, rows: PairRows) -> Iterator[Split]:
        """Yield (held-out task, training rows, validation rows) for each task in table order."""
        for task, held_out in zip(rows.tasks, rows.incidence.T.astype(bool), strict=True):
            if held_out.any() and not held_out.all():
                yield task, np.flatnonzero(~held_out), np.flatnonzero(held_out)


def task_folds(incidence: np.ndarray) -> Bool[np.ndarray, "folds n"]:
    """Mark, for each task, the rows it takes part in: the inner leave-one-task-out of training rows.

    Tasks without a row, or in all of them, are passed over.
    """
    folds = incidence.T.astype(bool)
    return folds[folds.any(axis=1) & ~folds.all(axis=1)]
