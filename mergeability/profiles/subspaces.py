"""Compute singular values, the first and last singular vectors, and overlaps of the subspaces that they span.

The metrics need the values and k vectors at both ends of a thin SVD: for a 3072×768 matrix, 20 vectors out
of 768. These are eigenvectors of the smaller Gram matrix AᵀA, formed in float64, where the products of
float32 numbers are exact. Squaring halves the number of correct digits, but float64 has twice as many, so the result
is as accurate as a float32 SVD of A, small singular values included, and takes a fraction of its time.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from mergeability.linalg.decompositions import gram_matrix, gram_memory, product

SIDES, ENDS = ("left", "right"), ("top", "bottom")

# Maximum block size of LAPACK, which determines the length of workspaces.
_LAPACK_BLOCK = 64
# Below this size a full eigendecomposition is as fast as a partial one.
_SMALL = 64


def needed(shape: tuple[int, int]) -> int:
    """Return how much memory the decomposition of a matrix takes, in bytes."""
    smaller, larger = sorted(shape)
    # The delta, the base's values while reading, blocks in float64, and three Gram matrices.
    return 8 * smaller * larger + gram_memory(smaller) + 4 * 8 * smaller**2


def decompose(matrix: Float32[np.ndarray, "m n"], k: int, device: str = "cpu") -> dict[str, Tensor]:
    """Compute the singular values and the first k and last k singular vectors of the thin SVD A = U S Vᵀ.

    A subspace is unique only if a gap separates its singular values from the others, and only then it
    is returned: the first k right vectors of a matrix of rank below k, or the last k ones of a matrix with
    several zero singular values, are arbitrary. Gaps use the same threshold as the rank, with eigenvalues of AᵀA as
    the numbers: above max(m, n)·ε·s₁², ε the precision of float64.

    Args:
        matrix: A.
        k: vectors of either end; clipped to r = min(m, n).
        device: where products and eigenvectors are computed.

    Returns:
        `values`, all r singular values in descending order, in float64; and in float32 those of
        `left_top` (m×k), `left_bottom`, `right_top` (n×k) and `right_bottom` that are determined.
    """
    # The Gram matrix of the tall orientation has the smaller size.
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    rows, rank = tall.shape
    k = min(k, rank)
    source = tall if device == "cpu" else torch.from_numpy(np.ascontiguousarray(tall)).to(device)
    squares, first, last = _outer_eigenvectors(gram_matrix(source), k)
    determined = _determined(squares, rows, k)
    values = np.sqrt(squares)
    # A singular square matrix: its left null vectors need a second decomposition.
    if rows == rank and not _gap(squares, rows, rank):
        # Left vectors of zero singular values cannot be computed from A·v = 0.
        _, left_first, left_last = _outer_eigenvectors(gram_matrix(source.T), k)
    else:
        left_first = _unit(product(source, first), values[:k])
        left_last = _unit(product(source, last), values[rank - k :])
    # Names refer to the tall matrix, whose right singular vectors are the eigenvectors; swap them for a wide one.
    found = {"right_top": first, "right_bottom": last, "left_top": left_first, "left_bottom": left_last}
    if tall is not matrix:
        found = {_mirrored(name): basis for name, basis in found.items()}
        determined = {_mirrored(name): is_so for name, is_so in determined.items()}
    bases = {
        name: torch.from_numpy(basis.astype(np.float32)) for name, basis in found.items() if determined[name]
    }
    return {"values": torch.from_numpy(values), **bases}


def squared_overlaps(
    left: Sequence[Mapping[str, Tensor]],
    right: Sequence[Mapping[str, Tensor]],
    name: str,
    size: tuple[int, int],
) -> Float64[np.ndarray, "A B"]:
    """Compute ‖LaᵀRb‖²_F, in [0, k], for the bases La of all models on the left and Rb of all models on the right.

    NaN if a model has no such basis, or did not change the matrix at all.

    Args:
        left: the results of `decompose` for A models.
        right: the results for B models, or the same object as `left`.
        name: name of the basis.
        size: its shape m×k.
    """
    bases, known = _side_by_side(left, name, size)
    others, others_known = (bases, known) if right is left else _side_by_side(right, name, size)
    k = size[1]
    products = (bases.T @ others).reshape(len(left), k, len(right), k)
    squares = np.einsum("aibj,aibj->ab", products, products, dtype=np.float64)
    if right is left:
        # Make it exactly symmetric, because the two halves may be summed in different orders.
        squares = (squares + squares.T) / 2
    return np.where(known[:, None] & others_known[None, :], squares, np.nan)


def _side_by_side(
    models: Sequence[Mapping[str, Tensor]], name: str, size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "m Tk"], Bool[np.ndarray, " T"]]:
    # Absent bases are replaced by zeros to keep one rectangular product, and masked afterwards.
    known = np.array([name in model and bool(model["values"][0] > 0) for model in models])
    absent = np.zeros(size, dtype=np.float32)
    bases = [model[name].numpy() if name in model else absent for model in models]
    return np.concatenate(bases, axis=1), known


def _outer_eigenvectors(
    gram: Float64[np.ndarray, "r r"], k: int
) -> tuple[Float64[np.ndarray, " r"], Float64[np.ndarray, "r k"], Float64[np.ndarray, "r k"]]:
    """Compute all eigenvalues, descending and not negative, and the k first and last eigenvectors."""
    # SciPy is imported where it is used: a merge, which imports this module, starts faster.
    import scipy.linalg

    size = len(gram)
    if size <= max(_SMALL, 2 * k):
        values, vectors = np.linalg.eigh(gram)
        first, last = vectors[:, size - k :], vectors[:, :k]
    else:
        # Like LAPACK's dsyevx, but values and vectors of both ends use one reduction to tridiagonal form.
        (tridiagonalise,) = scipy.linalg.get_lapack_funcs(("sytrd",), (gram,))
        reduced, diagonal, beside, scales, _ = tridiagonalise(
            np.asfortranarray(gram), lower=1, lwork=_LAPACK_BLOCK * size
        )
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside)
        ends = [
            scipy.linalg.eigh_tridiagonal(diagonal, beside, select="i", select_range=chosen)[1]
            for chosen in ((0, k - 1), (size - k, size - 1))
        ]
        vectors = _from_tridiagonal(reduced, scales, np.concatenate(ends, axis=1))
        last, first = vectors[:, :k], vectors[:, k:]
    # Copy, because PyTorch does not support negative strides.
    return np.maximum(values[::-1], 0), first[:, ::-1].copy(), last[:, ::-1].copy()


def _from_tridiagonal(
    reduced: Float64[np.ndarray, "r r"],
    scales: Float64[np.ndarray, " r_1"],
    vectors: Float64[np.ndarray, "r j"],
) -> Float64[np.ndarray, "r j"]:
    """Transform eigenvectors of the tridiagonal form to those of the matrix: LAPACK's dormtr, using dormqr."""
    import scipy.linalg

    # The reflectors of a lower reduction leave the first row unchanged.
    rest = np.asfortranarray(vectors[1:])
    (rotate,) = scipy.linalg.get_lapack_funcs(("ormqr",), (rest,))
    rotated, _, _ = rotate("L", "N", reduced[1:, :-1], scales, rest, _LAPACK_BLOCK * vectors.shape[1])
    return np.concatenate([vectors[:1], rotated])


def _determined(squares: Float64[np.ndarray, " r"], rows: int, k: int) -> dict[str, bool]:
    """Return which outer subspaces of a tall matrix are unique."""
    rank = len(squares)
    first = k == rank or _gap(squares, rows, k)
    last = k == rank or _gap(squares, rows, rank - k)
    # The right vectors of a tall matrix span their whole space; the left ones do not, so null vectors are arbitrary.
    filled = rows == rank or _gap(squares, rows, rank)
    return {
        "right_top": first,
        "right_bottom": last,
        "left_top": filled if k == rank else first,
        "left_bottom": last and filled,
    }


def _gap(squares: Float64[np.ndarray, " r"], rows: int, after: int) -> bool:
    """Return whether a gap follows the first so many singular values; zeros follow the last one."""
    following = squares[after] if after < len(squares) else 0.0
    # Eigenvalues of AᵀA are known only to about this absolute error.
    smallest = max(rows, len(squares)) * np.finfo(np.float64).eps * squares[0]
    return bool(squares[after - 1] - following > smallest)


def _unit(
    scaled: Float64[np.ndarray, "m k"], values: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "m k"]:
    """Divide A·v = s·u by s; vectors with s = 0 are not unique and not used."""
    return scaled / np.where(values > 0, values, 1)


def _mirrored(name: str) -> str:
    side, end = name.split("_")
    return f"{'left' if side == 'right' else 'right'}_{end}"
