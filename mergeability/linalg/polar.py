"""Compute polar factors (the nearest matrices with orthonormal columns) without an SVD."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergeability.linalg.decompositions import symmetric_eigen

# Below this c², a series in c² is exact to the last bit, while the closed forms would divide zero by zero.
_SMALL = 1e-6
# For larger 1 − c, the weights (1 − c)^(−1/2) are moderate and float32 products lose at most two digits.
_WELL_APART = 1e-4
# Below this, a direction of float32 unit columns is only rounding error; duplicated columns are far below.
BASES_TOLERANCE = 8 * torch.finfo(torch.float32).eps


def polar_factor(
    matrix: Float[Tensor, "m n"], *, tolerance: float | None = None
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " r"], bool]:
    """Compute the polar factor UVᵀ of A = U S Vᵀ from its smaller Gram matrix, A(AᵀA)^(−1/2).

    The eigendecomposition is in float64, so squaring the condition number costs nothing that float32 input
    had. Directions whose singular value is zero to float32 precision are left out: for a rank-deficient
    matrix the result is the partial isometry, which is unique, and not an arbitrary completion of it.

    Args:
        matrix: A, in float32 or better.
        tolerance: the part of the largest singular value up to which one counts as zero; that of a float32 SVD,
            max(m, n)·ε, when None. Bases side by side that fill the space have directions below that which are
            well determined: `BASES_TOLERANCE` keeps them.

    Returns:
        The factor in float32, the r = min(m, n) singular values of A in ascending order in float64, and
        whether A has full rank.

    Examples:
        >>> import torch
        >>> from mergeability.linalg.polar import polar_factor
        >>> factor, values, full_rank = polar_factor(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> factor.round(decimals=3), values.round(decimals=3), full_rank
        (tensor([[1., 0.],
                [0., 1.]]), tensor([2., 3.], dtype=torch.float64), True)
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, values, full = polar_factor(matrix.mT, tolerance=tolerance)
        return factor.mT, values, full
    wide = matrix.double()
    squares, vectors = _eigh(wide.mT @ wide)
    values = squares.clamp_min(0).sqrt()
    # eigh sorts ascending, so the last value is the largest.
    kept = values > (_tolerance(matrix) if tolerance is None else tolerance) * values[-1]
    # 1/∞ = 0 removes the directions without a singular value.
    inverse = torch.where(kept, values, torch.inf).reciprocal()
    factor = wide @ ((vectors * inverse) @ vectors.mT)
    return factor.float(), values, bool(kept.all())


def polar_factor_of_bases(bases: Float[Tensor, "T m r"]) -> tuple[Tensor, ...]:
    """Compute the polar factor of T concatenated bases; the columns of each basis are orthonormal or zero.

    For two bases, B = [U₁ U₂], the factor follows from the r×r matrix M = U₁ᵀU₂ alone: BᵀB = [[I, M], [Mᵀ, I]] has
    the eigenvalues 1 ± c, where c are the singular values of M. This takes an eighth of the time.

    Args:
        bases: T bases of r columns, T × m × r.

    Returns:
        Matrices whose product is the factor, m×k with k = T·r: the factor itself, or B and (BᵀB)^(−1/2) where
        that is well conditioned. Whoever multiplies it with more may choose a cheaper order.

    Examples:
        >>> import torch
        >>> from mergeability.linalg.polar import polar_factor_of_bases
        >>> bases = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
        >>> factors = polar_factor_of_bases(bases)
        >>> torch.linalg.multi_dot(factors).round(decimals=3) if len(factors) > 1 else factors[0]
        tensor([[1., 0.],
                [0., 1.]])
    """
    # Pairs are by far the most frequent case, and their factor needs only an r×r decomposition.
    if len(bases) == 2:
        found = _factor_of_pair(*bases)
        if found is not None:
            return found
    return (polar_factor(bases.permute(1, 0, 2).flatten(1), tolerance=BASES_TOLERANCE)[0],)


def _factor_of_pair(first: Float[Tensor, "m r"], second: Float[Tensor, "m r"]) -> tuple[Tensor, ...] | None:
    """Compute the polar factor of [U₁ U₂]; None if that has no full rank to float32 precision."""
    both = torch.cat([first, second], dim=1)
    wide, rank = both.double(), first.shape[1]
    one = torch.eye(rank, dtype=torch.float64)
    # Columns are orthonormal only to float32 precision, and if two directions nearly coincide, the error of 1 − c
    # would be as large as 1 − c. One Newton step makes them orthonormal to float64 precision.
    left, right = (1.5 * one - 0.5 * (basis.mT @ basis) for basis in (wide[:, :rank], wide[:, rank:]))
    weights, smallest = _inverse_root_of_pair(left @ (wide[:, :rank].mT @ wide[:, rank:]) @ right)
    if smallest <= 2 * _tolerance(first) ** 2:
        return None
    scaled = torch.cat([left @ weights[:rank], right @ weights[rank:]])
    if smallest > _WELL_APART:
        return both, scaled.float()
    return ((wide @ scaled).float(),)


def _inverse_root_of_pair(M: Float64[Tensor, "r r"]) -> tuple[Float64[Tensor, "k k"], float]:
    """Compute [[I, M], [Mᵀ, I]]^(−1/2), and the smallest eigenvalue 1 − c of what is in the brackets.

    With M = P c Qᵀ the blocks are P a Pᵀ, P b Qᵀ, Q b Pᵀ and Q a Qᵀ, where
    a, b = ((1 + c)^(−1/2) ± (1 − c)^(−1/2)) / 2. As functions of MᵀM = Q c² Qᵀ they need no P, which is not
    determined where c = 0: P (a − 1) Pᵀ = M Q ((a − 1)/c²) Qᵀ Mᵀ and Q b Pᵀ = Q (b/c) Qᵀ Mᵀ.
    """
    one = torch.eye(len(M), dtype=torch.float64)
    squares, Q = _eigh(M.mT @ M)
    squares = squares.clamp_min(0)
    c = squares.sqrt()
    below = (1 - squares) / (1 + c)
    plus, minus = (1 + c).rsqrt(), below.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    small = squares < _SMALL
    safe = torch.where(small, 1, squares)
    over_square = torch.where(small, 3 / 8 + squares * 35 / 128, ((plus + minus) / 2 - 1) / safe)
    over_c = torch.where(small, -1 / 2 - squares * 5 / 16, (plus - minus) / 2 / safe.sqrt())
    across = (Q * over_c) @ Q.mT @ M.mT
    turned = M @ Q
    first = torch.cat([one + (turned * over_square) @ turned.mT, across.mT], dim=1)
    second = torch.cat([across, one + (Q * (over_square * squares)) @ Q.mT], dim=1)
    return torch.cat([first, second]), float(below[-1])


def _eigh(matrix: Float64[Tensor, "n n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, "n n"]]:
    values, vectors = symmetric_eigen(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _tolerance(matrix: Tensor) -> float:
    return max(matrix.shape) * torch.finfo(torch.float32).eps
