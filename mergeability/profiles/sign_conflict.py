"""Where models pull apart: the signs of the entries that two models both changed most.

TIES (Yadav et al. 2023, arXiv 2306.01708) keeps each model's largest entries before it elects signs; here the
conflicts that it then has to settle are counted. Every delta is read in blocks, three times.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from mergeability.errors import UserError
from mergeability.profiles import grams
from mergeability.profiles.workers import Progress, no_progress, work
from mergeability.store import digest
from mergeability.task_vectors import TaskVectors

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 1
# A non-negative float32 sorts as its bits do: 15 leading bits (the sign is 0), then 16 trailing ones.
_LEADING, _TRAILING = 2**15, 2**16
# Leading bits from which on a number is infinite or NaN.
_INFINITE = 0x7F80


@dataclass(frozen=True)
class SignCounts:
    """How many entries two models both keep, and in how many of them their signs are opposite.

    Attributes:
        shared: entries that both keep.
        opposite: those of them that one model raised and the other lowered.
    """

    shared: Int64[np.ndarray, "T T"]
    opposite: Int64[np.ndarray, "T T"]


def count_signs(
    vectors: TaskVectors,
    density: float | int,
    *,
    memory_budget: float | int = 4,
    progress: Progress = no_progress,
) -> SignCounts:
    """Count, for every pair of models, the entries among the largest of both, and those of opposite sign.

    With D entries in all, a model keeps |τ| ≥ its (D − ⌊density·D⌋)-th smallest magnitude, as TIES does over
    the whole vector. What is exactly 0 has no sign and is never kept.

    Args:
        vectors: the models; their store keeps one threshold per model and the counts of every layer.
        density: share of entries kept, in (0, 1].
        memory_budget: GiB that what is computed may need.
        progress: wraps the loops.

    Raises:
        UserError: the density is out of range, or a delta is not finite.
    """
    if not 0 < density <= 1:
        raise UserError(f"Expected density to be in (0, 1], got {density}.")
    # Sorted by content: one set of models is one entry, in whatever order and under whatever names.
    owners = {_identity(vectors, task): task for task in vectors.tasks}
    order = sorted(owners)
    models = [owners[identity] for identity in order]
    thresholds = _thresholds(vectors, models, density, memory_budget, progress)
    content = [
        {"model": identity, "threshold": float(thresholds[task])}
        for identity, task in zip(order, models, strict=True)
    ]
    counts: dict[str, Int64[np.ndarray, "2 T T"]] = {}

    def compute(name: str) -> None:
        key = {"models": content, **_place(vectors, name), "version": _VERSION}
        found = vectors.store.arrays(
            "sign_count",
            key,
            lambda: {"counts": torch.from_numpy(_layer_counts(vectors, models, thresholds, name))},
        )
        counts[name] = found["counts"].numpy()

    work(
        list(vectors.names),
        compute,
        description="signs of all pairs",
        memory=_needed(len(models)),
        memory_budget=memory_budget,
        progress=progress,
    )
    places = [order.index(_identity(vectors, task)) for task in vectors.tasks]
    shared, opposite = sum(counts.values(), np.zeros((2, len(models), len(models)), dtype=np.int64))
    return SignCounts(shared[np.ix_(places, places)], opposite[np.ix_(places, places)])


def _thresholds(
    vectors: TaskVectors,
    models: list[str],
    density: float | int,
    memory_budget: float | int,
    progress: Progress,
) -> dict[str, np.float32]:
    """Find the smallest magnitude that each model keeps."""
    size = sum(vectors.parameters[name].size for name in vectors.names)
    # At density 1 the rank would be 0: everything is kept.
    rank = max(1, size - math.floor(density * size))
    places = digest({"parameters": [_place(vectors, name) for name in vectors.names]})
    found: dict[str, np.float32] = {}

    def compute(task: str) -> None:
        key = {"model": _identity(vectors, task), "parameters": places, "rank": rank, "version": _VERSION}
        record = vectors.store.record(
            "magnitude", key, lambda: {"magnitude": float(_kth_smallest_magnitude(vectors, task, rank))}
        )
        found[task] = np.float32(record["magnitude"])

    work(
        models,
        compute,
        description="largest entries",
        memory=_needed(1),
        memory_budget=memory_budget,
        progress=progress,
    )
    return found


def _kth_smallest_magnitude(vectors: TaskVectors, task: str, rank: int) -> np.float32:
    """Select one model's `rank`-th smallest magnitude over all parameters, exactly, in two passes.

    A histogram of the leading half of the bits finds the bin, one of the trailing half within it the value.
    """
    histogram = _histogram((bits >> 16 for bits in _magnitude_bits(vectors, task)), _LEADING)
    if histogram[_INFINITE:].any():
        for name in vectors.names:
            if not np.isfinite(vectors.read(task, name)).all():
                raise vectors.not_finite(task, name)
    leading, rank = _select(histogram, rank)
    within = (bits[bits >> 16 == leading] & (_TRAILING - 1) for bits in _magnitude_bits(vectors, task))
    trailing, _ = _select(_histogram(within, _TRAILING), rank)
    return np.uint32(leading << 16 | trailing).view(np.float32)


def _magnitude_bits(vectors: TaskVectors, task: str) -> Iterator[np.ndarray]:
    for name in vectors.names:
        for start, stop in _blocks(vectors.parameters[name].size):
            yield np.abs(vectors.read(task, name, start, stop)).view(np.uint32)


def _histogram(values: Iterator[np.ndarray], bins: int) -> Int64[np.ndarray, " bins"]:
    total = np.zeros(bins, dtype=np.int64)
    for some in values:
        # Converted here: NumPy's own conversion takes four times as long as the counting.
        total += np.bincount(some.astype(np.int64), minlength=bins)
    return total


def _select(histogram: Int64[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    """Find the bin that holds the value of this rank, from 1, and the value's rank within the bin."""
    cumulative = histogram.cumsum()
    index = int(np.searchsorted(cumulative, rank))
    return index, rank - int(cumulative[index] - histogram[index])


def _layer_counts(
    vectors: TaskVectors, models: list[str], thresholds: dict[str, np.float32], name: str
) -> Int64[np.ndarray, "2 T T"]:
    """Count the entries of one layer that two models both keep, and those of opposite sign."""
    shared, agreement = np.zeros((2, len(models), len(models)))
    for start, stop in _blocks(vectors.parameters[name].size):
        signs = np.empty((len(models), stop - start), dtype=np.float32)
        for row, task in enumerate(models):
            signs[row] = _kept_signs(vectors.read(task, name, start, stop), thresholds[task])
        # A sum of ±1 over one block is exact in float32, whatever its order.
        agreement += signs @ signs.T
        np.abs(signs, out=signs)
        shared += signs @ signs.T
    # Those that agree count +1 and those that do not −1: shared − agreement is twice the latter.
    return np.stack([shared, (shared - agreement) / 2]).astype(np.int64)


def _kept_signs(
    delta: Float32[np.ndarray, " elements"], threshold: np.float32
) -> Float32[np.ndarray, " elements"]:
    # Where the threshold is 0, what is 0 counts on both sides and stays 0.
    return np.subtract(delta >= threshold, delta <= -threshold, dtype=np.float32)


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + grams.BLOCK, size)) for start in range(0, size, grams.BLOCK))


def _needed(count: int) -> int:
    """Count the bytes that a layer's counts need while they are computed."""
    # Signs in float32; of one model at a time the delta, the base's values, magnitudes, and bins in 64 bits.
    return grams.BLOCK * (4 * count + 24) + 6 * 8 * count**2 + 3 * 8 * _TRAILING


def _identity(vectors: TaskVectors, task: str) -> str:
    return digest({"base": vectors.base_hash, "model": vectors.identity(task)})


def _place(vectors: TaskVectors, name: str) -> dict[str, object]:
    parameter = vectors.parameters[name]
    return {"tensor": parameter.tensor, "start": parameter.start, "size": parameter.size}
