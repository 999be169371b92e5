"""Compute overlaps between the singular subspaces of two models' matrices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeability.profiles import subspaces
from mergeability.profiles.evidence import frozen
from mergeability.profiles.subject import Subject
from mergeability.task_vectors.vectors import TaskVectors

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2
SUBSPACE_SIZE = 10
# Models whose subspaces are compared in one product. Constant, so that sums do not depend on the memory budget.
_GROUP = 64
# Models whose decompositions are in memory together; each decomposition is read T / _TOGETHER times for T models.
_TOGETHER = 8 * _GROUP
# Number of elements of a delta read at a time.
_PART = 2**20
_NAMES = tuple(f"{side}_{end}" for side in subspaces.SIDES for end in subspaces.ENDS)


@dataclass(frozen=True)
class SubspaceOverlaps:
    """Compute and store overlaps ‖UaᵀUb‖²_F of the first or last singular vectors, and the singular values.

    Attributes:
        k: number of singular vectors at each end.
    """

    k: int = SUBSPACE_SIZE

    def combine(self, subject: Subject) -> dict[str, np.ndarray]:
        """Return `left_top`, `left_bottom`, `right_top`, `right_bottom` (all L×T×T) and `singular_values` (L×T×K).

        There are L matrices, T models and up to K singular values per matrix; fewer values are padded with zeros.
        """
        vectors = subject.task_vectors
        key = {
            "base": vectors.base_hash,
            "models": [vectors.identity(task) for task in subject.tasks],
            "matrices": [vectors.parameters[name].content for name in vectors.matrices],
            "k": self.k,
            **subject.settings(_VERSION),
        }
        found = subject.store.arrays("overlap", key, lambda: self._compute(subject))
        return {name: frozen(array.numpy()) for name, array in found.items()}

    def decompose(self, subject: Subject) -> None:
        """Compute and store the singular values and the first and last singular vectors of every model's matrices."""
        vectors = subject.task_vectors
        vectors.check_base()
        # Decompose identical models only once.
        owners = {vectors.identity(task): task for task in subject.tasks}
        items = [(task, name) for name in vectors.matrices for task in owners.values()]
        sizes = [subspaces.needed((rows, columns)) for rows, columns in matrix_shapes(vectors).tolist()]

        def ensure(item: tuple[str, str]) -> None:
            subject.store.ensure(
                "singular", self._key(subject, *item), lambda: self._decomposed(subject, *item)
            )

        subject.run.map(ensure, items, description="singular vectors", memory=max(sizes, default=0))

    def _compute(self, subject: Subject) -> dict[str, Tensor]:
        self.decompose(subject)
        matrices, count = subject.task_vectors.matrices, len(subject.tasks)
        shapes = matrix_shapes(subject.task_vectors)
        found = {
            name: torch.full((len(matrices), count, count), torch.nan, dtype=torch.float64) for name in _NAMES
        }
        longest = int(shapes.min(1).max(initial=0))
        found["singular_values"] = torch.zeros(len(matrices), count, longest, dtype=torch.float64)

        def compare(name: str) -> dict[str, np.ndarray]:
            return self._compare(subject, name)

        # Decompositions in memory, the concatenated bases of two groups, and their products.
        length = int(shapes.sum(1).max(initial=0))
        largest = 8 * min(_GROUP, count) * self.k * (length + 4 * _GROUP * self.k)
        if count > _GROUP:
            largest += 8 * min(2 * _TOGETHER, count) * self.k * length
        compared = subject.run.map(compare, matrices, description="subspaces of all pairs", memory=largest)
        for layer, of_layer in enumerate(compared):
            for name, values in of_layer.items():
                found[name][layer, ..., : values.shape[-1]] = torch.from_numpy(values)
        return found

    def _key(self, subject: Subject, task: str, name: str) -> dict[str, Any]:
        vectors = subject.task_vectors
        model = {"base": vectors.base_hash, "model": vectors.identity(task)}
        content = vectors.parameters[name].content
        return {**model, **content, "k": self.k, **subject.settings(_VERSION)}

    def _decomposed(self, subject: Subject, task: str, name: str) -> dict[str, Tensor]:
        vectors = subject.task_vectors
        size = vectors.parameters[name].size
        delta = np.empty(size, dtype=np.float32)
        # Read in parts, so that the base's values and converted ones are never all in memory in addition to the delta.
        for start in range(0, size, _PART):
            stop = min(start + _PART, size)
            delta[start:stop] = vectors.read(task, name, start, stop)
        delta = delta.reshape(vectors.parameters[name].shape)
        if not np.isfinite(delta).all():
            raise vectors.not_finite(task, name)
        return subspaces.decompose(delta, self.k, subject.run.device)

    def _compare(self, subject: Subject, name: str) -> dict[str, np.ndarray]:
        """Compare one matrix's subspaces between all models."""
        shape, count = subject.task_vectors.parameters[name].shape, len(subject.tasks)
        size = min(self.k, *shape)
        found = {name: np.full((count, count), np.nan) for name in _NAMES}
        found["singular_values"] = np.zeros((count, min(shape)))
        for rows, left, columns, right in self._groups(subject, name):
            if columns == rows:
                found["singular_values"][rows] = [one["values"] for one in left]
            for axis, side in enumerate(subspaces.SIDES):
                for end in subspaces.ENDS:
                    basis = f"{side}_{end}"
                    overlaps = subspaces.squared_overlaps(left, right, basis, (shape[axis], size))
                    found[basis][np.ix_(rows, columns)] = overlaps
                    # ‖UaᵀUb‖_F is symmetric, so each pair of groups is computed once.
                    found[basis][np.ix_(columns, rows)] = overlaps.T
        return found

    def _groups(
        self, subject: Subject, name: str
    ) -> Iterator[tuple[range, list[dict[str, Tensor]], range, list[dict[str, Tensor]]]]:
        """Yield every pair of groups of models, with their decompositions; a group with itself first."""

        def read(rows: range) -> list[dict[str, Tensor]]:
            keys = [self._key(subject, subject.tasks[row], name) for row in rows]
            return [subject.store.read("singular", key) for key in keys]

        def groups(rows: range) -> list[range]:
            return [
                range(first, min(first + _GROUP, rows.stop)) for first in range(rows.start, rows.stop, _GROUP)
            ]

        count = len(subject.tasks)
        blocks = [range(first, min(first + _TOGETHER, count)) for first in range(0, count, _TOGETHER)]
        for position, rows in enumerate(blocks):
            left = read(rows)
            for columns in blocks[position:]:
                right = left if columns == rows else read(columns)
                for one in groups(rows):
                    ours = left[one.start - rows.start : one.stop - rows.start]
                    for other in groups(columns):
                        if other.start < one.start:
                            continue
                        theirs = right[other.start - columns.start : other.stop - columns.start]
                        yield one, ours, other, ours if other == one else theirs


def matrix_shapes(vectors: TaskVectors) -> np.ndarray:
    """Return the shapes (m, n) of all L matrices as an L×2 array."""
    shapes = [vectors.parameters[name].shape for name in vectors.matrices]
    return np.array(shapes, dtype=np.int64).reshape(-1, 2)


def undetermined(
    found: dict[str, np.ndarray], tasks: tuple[str, ...], side: str, end: str, k: int
) -> list[str]:
    """For each model, count the changed matrices whose overlaps are undefined because singular vectors are not unique.

    Args:
        found: result of `SubspaceOverlaps`.
        tasks: the models.
        side: left or right.
        end: top or bottom.
        k: number of singular vectors at this end.

    Returns:
        One sentence per model with such matrices.
    """
    changed = found["singular_values"].max(-1, initial=0) > 0
    missing = changed & np.isnan(np.diagonal(found[f"{side}_{end}"], axis1=1, axis2=2))
    return [
        f"the {'first' if end == 'top' else 'last'} {k} {side} singular vectors of '{task}' are not "
        f"determined in {count} of {len(missing)} matrices, where singular values are zero or equal: "
        "these are left out of the overlaps of its pairs"
        for task, count in zip(tasks, missing.sum(0), strict=True)
        if count
    ]
