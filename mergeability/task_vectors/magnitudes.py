"""Compute the magnitude threshold of a model's largest entries without sorting all entries."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.linalg import grams
from mergeability.task_vectors.vectors import TaskVectors

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1
# Non-negative float32 numbers sort like their bits: 15 leading bits (the sign bit is 0) and 16 trailing bits.
_LEADING, _TRAILING = 2**15, 2**16
# Leading bits of infinity; larger ones are NaN.
_INFINITE = 0x7F80


def magnitude_thresholds(
    vectors: TaskVectors, density: float | int, run: Run | None = None
) -> dict[str, np.float32]:
    """Return the magnitude above which a given share of each model's entries lies.

    Of D entries, a model keeps those with |τ| ≥ its (D − ⌊density·D⌋)-th smallest magnitude, as TIES trims.

    Args:
        vectors: the models; their store keeps the thresholds.
        density: share of entries kept, in (0, 1].
        run: memory budget and progress; 4 GiB and no progress when None.

    Returns:
        Task → threshold, at least 0.

    Raises:
        UserError: the density is outside (0, 1], or a delta is not finite.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.task_vectors import magnitude_thresholds
        >>> found = magnitude_thresholds(tiny_task_vectors(cars=[4, 1, 0, -2], svhn=[2, -3, 1, 0]), density=0.25)
        >>> {task: float(threshold) for task, threshold in found.items()}
        {'cars': 2.0, 'svhn': 2.0}
    """
    check_density(density)
    size = sum(vectors.parameters[name].size for name in vectors.names)
    # At density 1 the rank would be 0, and every entry is kept.
    rank = max(1, size - math.floor(density * size))
    places = digest({"parameters": [place(vectors, name) for name in vectors.names]})

    def find(task: str) -> np.float32:
        key = {"model": identity(vectors, task), "parameters": places, "rank": rank, "version": _VERSION}
        record = vectors.store.record(
            "magnitude", key, lambda: {"magnitude": float(_kth_smallest_magnitude(vectors, task, rank))}
        )
        return np.float32(record["magnitude"])

    run = Run() if run is None else run
    found = run.map(find, vectors.tasks, description="largest entries", memory=_needed(vectors))
    return dict(zip(vectors.tasks, found, strict=True))


def smallest_value(values: Float[Tensor, " n"], rank: int) -> float:
    """Return the value that has a given rank among finite values; NumPy selects faster than `torch.kthvalue`.

    Args:
        values: a vector.
        rank: from 1, the smallest value, to the number of values, the largest.

    Examples:
        >>> import torch
        >>> from mergeability.task_vectors.magnitudes import smallest_value
        >>> smallest_value(torch.tensor([4.0, 1.0, 3.0]), rank=2)
        3.0
    """
    return float(np.partition(values.numpy(), rank - 1)[rank - 1])


def _kth_smallest_magnitude(vectors: TaskVectors, task: str, rank: int) -> np.float32:
    """Select one model's `rank`-th smallest magnitude over all parameters, exactly, in two passes.

    A histogram of the leading half of the bits finds the bin, one of the trailing half within it the value.
    """
    histogram = _histogram((bits >> 16 for bits in _magnitude_bits(vectors, task)), _LEADING)
    # NaN and infinity fall into the last bins, so they are detected without a separate pass.
    if histogram[_INFINITE:].any():
        for name in vectors.names:
            if not np.isfinite(vectors.read(task, name)).all():
                raise vectors.not_finite(task, name)
    leading, rank = _select(histogram, rank)
    # Second pass: only values in the selected bin, by their trailing bits.
    within = (bits[bits >> 16 == leading] & (_TRAILING - 1) for bits in _magnitude_bits(vectors, task))
    trailing, _ = _select(_histogram(within, _TRAILING), rank)
    return np.uint32(leading << 16 | trailing).view(np.float32)


def _magnitude_bits(vectors: TaskVectors, task: str) -> Iterator[np.ndarray]:
    for name in vectors.names:
        for start, stop in blocks(vectors, name):
            yield np.abs(vectors.read(task, name, start, stop)).view(np.uint32)


def _histogram(values: Iterator[np.ndarray], bins: int) -> Int64[np.ndarray, " bins"]:
    total = np.zeros(bins, dtype=np.int64)
    for some in values:
        # Converted explicitly, because NumPy's implicit conversion takes four times as long as counting.
        total += np.bincount(some.astype(np.int64), minlength=bins)
    return total


def _select(histogram: Int64[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    """Find the bin that holds the value of this rank, from 1, and the value's rank within the bin."""
    cumulative = histogram.cumsum()
    index = int(np.searchsorted(cumulative, rank))
    return index, rank - int(cumulative[index] - histogram[index])


def blocks(vectors: TaskVectors, name: str) -> Iterator[tuple[int, int]]:
    """Split a parameter into ranges that are read one by one; a parameter whose delta is transformed is not split."""
    size = vectors.parameters[name].size
    # Reading a range of a transformed tensor transforms the whole tensor each time.
    length = size if vectors.is_transformed else grams.BLOCK
    return ((start, min(start + length, size)) for start in range(0, size, max(length, 1)))


def check_density(density: float | int) -> None:
    """Check that a density, the share of entries that are kept, is in (0, 1].

    Raises:
        UserError: the density is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise UserError(f"Expected density to be in (0, 1], got {density}.")


def identity(vectors: TaskVectors, task: str) -> str:
    """Return an identifier of a model's deltas, which is used in store keys."""
    return digest({"base": vectors.base_hash, "model": vectors.identity(task)})


def place(vectors: TaskVectors, name: str) -> dict[str, object]:
    """Return the place of a parameter in the checkpoints: tensor, first element and number of elements."""
    parameter = vectors.parameters[name]
    return {"tensor": parameter.tensor, "start": parameter.start, "size": parameter.size}


def _needed(vectors: TaskVectors) -> int:
    """Count the bytes that one model's selection needs: of a block the delta, the base, magnitudes and bins."""
    largest = max((vectors.parameters[name].size for name in vectors.names), default=0)
    return 32 * (largest if vectors.is_transformed else grams.BLOCK) + 3 * 8 * _TRAILING
