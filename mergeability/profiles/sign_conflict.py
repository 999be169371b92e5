"""Count sign conflicts: entries that are among the most changed in both models of a pair but have opposite signs.

TIES (Yadav et al. 2023, arXiv 2306.01708) keeps each model's largest entries and then elects signs; the metric counts
the conflicts between them. Every delta is read in blocks, three times.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from mergeability.context import Run
from mergeability.linalg import grams
from mergeability.profiles.subject import Subject
from mergeability.task_vectors.magnitudes import blocks, check_density, identity, magnitude_thresholds, place
from mergeability.task_vectors.vectors import TaskVectors

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1


@dataclass(frozen=True)
class SignCounts:
    """Hold, for each pair, how many entries are kept in both models, and how many of these have opposite signs.

    In each model, the most changed entries are kept.

    Attributes:
        shared: number of entries that both models keep.
        opposite: number of these entries with opposite signs.

    Examples:
        >>> import numpy as np
        >>> from mergeability.profiles.sign_conflict import SignCounts
        >>> counts = SignCounts(shared=np.array([[4, 2], [2, 4]]), opposite=np.array([[0, 1], [1, 0]]))
        >>> (counts.opposite / counts.shared).tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """

    shared: Int64[np.ndarray, "T T"]
    opposite: Int64[np.ndarray, "T T"]


@dataclass(frozen=True)
class SignConflicts:
    """Compute and store the counts of sign conflicts of all pairs.

    Attributes:
        density: share of entries that a model keeps, in (0, 1].

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.profiles.sign_conflict import SignConflicts
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 1, -2, 5], svhn=[4, -2, -1, 1]))
        >>> profiles.evidence(SignConflicts(density=1)).opposite
        array([[0, 1],
               [1, 0]])
    """

    density: float | int = 0.2

    def combine(self, subject: Subject) -> SignCounts:
        """Count sign conflicts for every pair, and check that the models were fine-tuned from their base."""
        subject.task_vectors.check_base()
        return count_signs(subject.task_vectors, self.density, subject.run)


def count_signs(vectors: TaskVectors, density: float | int, run: Run | None = None) -> SignCounts:
    """Count, for every pair, the entries that both models keep, and how many of these have opposite signs.

    With D entries in all, a model keeps |τ| ≥ its (D − ⌊density·D⌋)-th smallest magnitude, as TIES does over
    the whole vector. An entry that is exactly 0 has no sign and is never kept.

    Args:
        vectors: the models; their store keeps one threshold per model and the counts of every layer.
        density: share of entries kept, in (0, 1].
        run: memory budget and progress; 4 GiB and none when None.

    Returns:
        Counts for every pair, T×T.

    Raises:
        UserError: the density is out of range, or a delta is not finite.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.profiles.sign_conflict import count_signs
        >>> models = tiny_task_vectors(cars=[3, 1, -2, 5], svhn=[4, -2, -1, 1])
        >>> count_signs(models, density=1).shared
        array([[4, 4],
               [4, 4]])
    """
    check_density(density)
    # Sorted by content, so that one set of models is one entry, whatever their order and names.
    owners = {identity(vectors, task): task for task in vectors.tasks}
    order = sorted(owners)
    models = [owners[one] for one in order]
    run = Run() if run is None else run
    thresholds = magnitude_thresholds(vectors.select(models), density, run)
    content = [
        {"model": one, "threshold": float(thresholds[task])} for one, task in zip(order, models, strict=True)
    ]

    def find(name: str) -> np.ndarray:
        key = {"models": content, **place(vectors, name), "version": _VERSION}
        found = vectors.store.arrays(
            "sign_count",
            key,
            lambda: {"counts": torch.from_numpy(_layer_counts(vectors, models, thresholds, name))},
        )
        return found["counts"].numpy()

    counts = run.map(find, vectors.names, description="signs of all pairs", memory=_needed(len(models)))
    places = [order.index(identity(vectors, task)) for task in vectors.tasks]
    shared, opposite = sum(counts, np.zeros((2, len(models), len(models)), dtype=np.int64))
    return SignCounts(shared[np.ix_(places, places)], opposite[np.ix_(places, places)])


def _layer_counts(
    vectors: TaskVectors, models: list[str], thresholds: dict[str, np.float32], name: str
) -> Int64[np.ndarray, "2 T T"]:
    """Count the entries of one layer that two models both keep, and those of opposite sign."""
    shared, agreement = np.zeros((2, len(models), len(models)))
    for start, stop in blocks(vectors, name):
        signs = np.empty((len(models), stop - start), dtype=np.float32)
        for row, task in enumerate(models):
            signs[row] = _kept_signs(vectors.read(task, name, start, stop), thresholds[task])
        # Sums of ±1 over one block are exact in float32 in any order.
        agreement += signs @ signs.T
        np.abs(signs, out=signs)
        shared += signs @ signs.T
    # Equal signs count +1 and opposite ones −1, so shared − agreement is twice the number of opposite signs.
    return np.stack([shared, (shared - agreement) / 2]).astype(np.int64)


def _kept_signs(
    delta: Float32[np.ndarray, " elements"], threshold: np.float32
) -> Float32[np.ndarray, " elements"]:
    # If the threshold is 0, zeros satisfy both comparisons and their sign stays 0.
    return np.subtract(delta >= threshold, delta <= -threshold, dtype=np.float32)


def _needed(count: int) -> int:
    """Count the bytes that a layer's counts need while they are computed."""
    # Signs in float32, plus the delta of one model and the base's values.
    return grams.BLOCK * (4 * count + 24) + 6 * 8 * count**2
