"""Compute singular triplets from the smaller Gram matrix, because this is faster than an SVD.

AᵀA is formed in float64, where the products of float32 numbers are exact. Squaring halves the number of correct
digits, but float64 has twice as many as float32, so the result is as accurate as a float32 SVD of A, including small
singular values.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergeability.threads import one_blas_thread

# Number of rows in float64 at a time. Constant, so that the order of summation, and so the result, is reproducible.
_ROWS = 512


def gram_matrix(tall: Any) -> Float64[np.ndarray, "r r"]:
    """Compute AᵀA in float64 without a float64 copy of A; the result is exactly symmetric.

    Args:
        tall: A, an array or a tensor, m × r.

    Returns:
        AᵀA, r × r.

    Examples:
        >>> import numpy as np
        >>> from mergeability.linalg.decompositions import gram_matrix
        >>> gram_matrix(np.array([[1, 2], [0, 1]], dtype=np.float32))
        array([[1., 2.],
               [2., 5.]])
    """
    total: Any = 0
    for start in range(0, len(tall), _ROWS):
        wide = _double(tall[start : start + _ROWS])
        total = total + wide.T @ wide
    gram = total.cpu().numpy() if isinstance(total, Tensor) else total
    return (gram + gram.T) / 2


def product(tall: Any, vectors: Float64[np.ndarray, "r k"]) -> Float64[np.ndarray, "m k"]:
    """Compute A·V in float64 without a float64 copy of A.

    Args:
        tall: A, an array or a tensor, m × r.
        vectors: V, r × k.

    Returns:
        A·V, m × k.

    Examples:
        >>> import numpy as np
        >>> from mergeability.linalg.decompositions import product
        >>> product(np.array([[1, 2], [0, 1]], dtype=np.float32), np.array([[1.0], [1.0]]))
        array([[3.],
               [1.]])
    """
    right: Any = torch.from_numpy(vectors).to(tall.device) if isinstance(tall, Tensor) else vectors
    parts = [_double(tall[start : start + _ROWS]) @ right for start in range(0, len(tall), _ROWS)]
    if isinstance(tall, Tensor):
        return torch.cat(parts).cpu().numpy()
    return np.concatenate(parts)


def gram_memory(smaller: int) -> int:
    """Return the memory, in bytes, that the blocks of `gram_matrix` take.

    Args:
        smaller: the smaller extent r of the matrix.

    Examples:
        >>> from mergeability.linalg.decompositions import gram_memory
        >>> gram_memory(768)
        6291456
    """
    return 2 * 8 * _ROWS * smaller


def leading_triplets(
    matrix: Float[Tensor, "m n"], rank: int
) -> tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "r n"]]:
    """Compute the `rank` leading singular triplets U, S, Vh of a matrix in float32, with S in descending order.

    A triplet whose singular value is zero to float64 precision of the squares (below √(max(m, n)·ε)·s₁) has no
    unique direction: its value and vectors are set to zero, so that results do not depend on arbitrary vectors.

    Args:
        matrix: a matrix, m × n.
        rank: number of triplets r, at most min(m, n).

    Returns:
        U (m × r), S (r) and Vh (r × n).

    Examples:
        >>> import torch
        >>> from mergeability.linalg.decompositions import leading_triplets
        >>> U, S, Vh = leading_triplets(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]), rank=1)
        >>> U.shape, S, Vh.shape
        (torch.Size([2, 1]), tensor([3.]), torch.Size([1, 3]))
    """
    if matrix.shape[0] < matrix.shape[1]:
        U, S, Vh = leading_triplets(matrix.mT, rank)
        return Vh.mT.contiguous(), S, U.mT.contiguous()
    eigenvalues, vectors = symmetric_eigen(gram_matrix(matrix))
    squares = torch.from_numpy(eigenvalues[::-1][:rank].copy()).clamp_min(0)
    right = torch.from_numpy(vectors[:, ::-1][:, :rank].copy())
    found = squares > squares[:1] * max(matrix.shape) * torch.finfo(torch.float64).eps
    values = torch.where(found, squares, 0).sqrt()
    left = (matrix.double() @ right) / torch.where(found, values, torch.inf)
    return left.float(), values.float(), (right * found).mT.contiguous().float()


def symmetric_eigen(
    matrix: Float64[np.ndarray, "n n"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
    """Compute all eigenvalues of a symmetric matrix, in ascending order, and the eigenvectors as columns.

    Uses NumPy's driver, which takes half the time of PyTorch's on some CPUs, on one thread: competing threads of
    two libraries on the same cores made a merge of two ViT-B/16 models 2.3 times slower.

    Args:
        matrix: a symmetric matrix, n × n.

    Returns:
        The eigenvalues, ascending, and the eigenvectors as columns.

    Examples:
        >>> import numpy as np
        >>> from mergeability.linalg.decompositions import symmetric_eigen
        >>> values, vectors = symmetric_eigen(np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> values.round(6), vectors.shape
        (array([1., 3.]), (2, 2))
    """
    with one_blas_thread():
        return np.linalg.eigh(matrix)


def _double(block: Any) -> Any:
    return block.double() if isinstance(block, Tensor) else block.astype(np.float64)
