"""Polar factors: the nearest matrix with orthonormal columns, without an SVD of the matrix itself."""

import torch
from jaxtyping import Float
from torch import Tensor


def polar_factor(matrix: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, " r"], bool]:
    """Compute the polar factor UVᵀ of A = U S Vᵀ from its smaller Gram matrix, A(AᵀA)^(−1/2).

    The eigendecomposition is in float64, so squaring the condition number costs nothing that float32 input
    had. Directions whose singular value is zero to float32 precision are left out: for a rank-deficient
    matrix the result is the partial isometry, which is unique, and not an arbitrary completion of it.

    Returns:
        The factor in float32, the r = min(m, n) singular values of A in ascending order in float64, and
        whether A has full rank.
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, values, full = polar_factor(matrix.mT)
        return factor.mT, values, full
    wide = matrix.double()
    squares, vectors = torch.linalg.eigh(wide.mT @ wide)
    values = squares.clamp_min(0).sqrt()
    tolerance = values[-1] * max(matrix.shape) * torch.finfo(torch.float32).eps
    kept = values > tolerance
    inverse = torch.where(kept, values, torch.inf).reciprocal()
    factor = wide @ ((vectors * inverse) @ vectors.mT)
    return factor.float(), values, bool(kept.all())
