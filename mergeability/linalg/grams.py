"""Compute Gram matrices of long vectors in blocks, so that memory does not grow with the length."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64

# Elements of every vector in memory at a time. Constant, so that sums are reproducible on any machine: 20 vectors
# of a block in float64 take 10 MB, about the size of a processor's cache.
BLOCK = 2**16

# Vectors in memory together; more vectors are processed in pairs of half-size groups. Constant for the same reason.
TOGETHER = 512

# (row, start, stop) → that range of the row's vector, in float32
Read = Callable[[int, int, int], np.ndarray]


def streamed_gram(read: Read, count: int, size: int, *, device: str = "cpu") -> Float64[np.ndarray, "T T"]:
    """Compute in float64 the Gram matrix ⟨x_a, x_b⟩ of T vectors that are read in float32 blocks.

    Args:
        read: gives a range of one vector.
        count: how many vectors there are, T.
        size: how long each is.
        device: where the products are computed.

    Examples:
        >>> import numpy as np
        >>> from mergeability.linalg.grams import streamed_gram
        >>> vectors = np.array([[3, 0], [4, 4]], dtype=np.float32)
        >>> streamed_gram(lambda row, start, stop: vectors[row, start:stop], count=2, size=2)
        array([[ 9., 12.],
               [12., 32.]])
    """
    group = count if count <= TOGETHER else max(1, TOGETHER // 2)
    groups = [range(first, min(first + group, count)) for first in range(0, count, group)]
    gram = np.zeros((count, count), dtype=np.float64)
    for position, rows in enumerate(groups):
        # Upper triangle of groups only; the lower one is its transpose.
        for columns in groups[position:]:
            # Values that are not finite appear in the result, where the caller reports them.
            with np.errstate(invalid="ignore", over="ignore"):
                product = _product(read, rows, columns, size, device)
            gram[np.ix_(rows, columns)] = product
            gram[np.ix_(columns, rows)] = product.T
    # Make it exactly symmetric, because the two halves may be summed in different orders.
    return (gram + gram.T) / 2


def needed(count: int) -> int:
    """Return how much memory the computation of a Gram matrix of `count` vectors takes, in bytes.

    Args:
        count: number of vectors.

    Examples:
        >>> from mergeability.linalg.grams import needed
        >>> needed(20)
        11540736
    """
    return BLOCK * (8 * min(count, TOGETHER) + 16) + 16 * count**2


def _product(
    read: Read, rows: range, columns: range, size: int, device: str
) -> Float64[np.ndarray, "rows columns"]:
    total = np.zeros((len(rows), len(columns)), dtype=np.float64)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        left = _block(read, rows, start, stop)
        right = left if columns == rows else _block(read, columns, start, stop)
        if device == "cpu":
            total += left @ right.T
        else:
            on_device = torch.from_numpy(left).to(device)
            other = on_device if right is left else torch.from_numpy(right).to(device)
            total += (on_device @ other.T).cpu().numpy()
    return total


def _block(read: Read, rows: range, start: int, stop: int) -> Float64[np.ndarray, "rows block"]:
    block = np.empty((len(rows), stop - start), dtype=np.float64)
    for position, row in enumerate(rows):
        block[position] = read(row, start, stop)
    return block
