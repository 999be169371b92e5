"""Create the folds that leave out both tasks of a pair; folds are created one at a time to save memory."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int

from mergeability.prediction.predictors.arrays import InnerFold


class PairFolds(Sequence[InnerFold]):
    """Create one fold per pair, to predict this pair from the pairs that share no task with it.

    A pair without any such training pair has no fold.

    Args:
        ends: the two tasks of each pair, as numbers from 0.

    Examples:
        >>> folds = PairFolds(np.array([[0, 1], [0, 2], [2, 3]]))
        >>> [(training.tolist(), validation.tolist()) for training, validation in folds]
        [([2], [0]), ([0], [2])]
    """

    def __init__(self, ends: Int[np.ndarray, "n 2"]) -> None:
        self.ends = ends
        self.tasks = int(ends.max()) + 1 if len(ends) else 0
        a, b = ends.T
        shared = np.zeros((self.tasks, self.tasks), dtype=int)
        np.add.at(shared, (a, b), 1)
        np.add.at(shared, (b, a), a != b)
        # Whether every pair occurs once and has two different tasks, as in every checked table.
        self.distinct = bool((shared <= 1).all() and (a != b).all())
        of_task = shared.sum(axis=1)
        # Pairs that share a task with (a, b), without counting those of both tasks twice.
        left_out = np.where(a == b, of_task[a], of_task[a] + of_task[b] - shared[a, b])
        self.rows = np.flatnonzero(left_out < len(ends))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> InnerFold: ...

    @overload
    def __getitem__(self, index: slice) -> list[InnerFold]: ...

    def __getitem__(self, index: int | slice) -> InnerFold | list[InnerFold]:
        if isinstance(index, slice):
            return [self._fold(int(row)) for row in self.rows[index]]
        return self._fold(int(self.rows[index]))

    def __iter__(self) -> Iterator[InnerFold]:
        return (self._fold(int(row)) for row in self.rows)

    def _fold(self, row: int) -> InnerFold:
        (a, b), (first, second) = self.ends[row], self.ends.T
        training = np.flatnonzero((first != a) & (first != b) & (second != a) & (second != b))
        return training, np.array([row])
