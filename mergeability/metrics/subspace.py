"""Compare singular subspaces of two task vectors; values are means over the 2-D weight matrices.

τ = U S Vᵀ is the thin SVD of one matrix's delta. A matrix that one of the models did not change has no
subspace and is skipped for that pair; the value is NaN if no matrix is left.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from mergeability.checks import Count
from mergeability.metrics.traits import metric
from mergeability.profiles.profiles import Profiles


@metric(category="subspace", low=0, high=1, equal=1)
def singular_value_overlap(profiles: Profiles, count: Count = 100) -> Float64[np.ndarray, "T T"]:
    """Compute the cosine of two models' vectors of leading singular values, in [0, 1], averaged over matrices.

    Formula: ⟨s_a, s_b⟩ / (‖s_a‖ ‖s_b‖), where s_t are the `count` leading singular values of τ_t.

    Args:
        profiles: the models.
        count: number of leading singular values, at least 1.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import singular_value_overlap
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0], [0, 1]], svhn=[[2, 0], [0, 1]]))
        >>> singular_value_overlap(profiles).round(3)
        array([[1.  , 0.99],
               [0.99, 1.  ]])
    """
    values = profiles.singular_values(count)
    norms = np.linalg.norm(values, axis=-1)
    changed, units = norms > 0, values / np.where(norms > 0, norms, 1)[:, :, None]

    def cosines(known: Bool[np.ndarray, " T"], own: Float64[np.ndarray, "T K"]) -> Float64[np.ndarray, "T T"]:
        # Keep an axis for the single matrix, so that the order of summation, and so the last bit, is the same.
        products = np.einsum("lak,lbk->lab", own[None], own[None])[0]
        return np.where(known[:, None] & known[None, :], products, np.nan)

    return _mean_over_matrices(map(cosines, changed, units), len(profiles.tasks))


@metric(category="subspace", low=0, high=1)
def left_overlap(profiles: Profiles, k: Count = 10) -> Float64[np.ndarray, "T T"]:
    """Compute the overlap of the subspaces spanned by the k leading left singular vectors, averaged over matrices.

    Divided by k as published, not by √k: identical subspaces score 1/√k, which is 0.316 at k = 10.

    Formula: ‖UaᵀUb‖_F / k.

    Range: [0, 1/√k], without a unit.

    Args:
        profiles: the models.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, or a delta is not finite.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import left_overlap
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> left_overlap(profiles, k=1).round(3)
        array([[1., 0.],
               [0., 1.]])
    """
    squares = profiles.subspace_overlaps("left", "top", k)
    sizes = _sizes(profiles, k)
    return _mean_over_matrices(
        (np.sqrt(square) / size for square, size in zip(squares, sizes, strict=True)), len(profiles.tasks)
    )


@metric(category="subspace", low=0, high=1, equal=1)
def right_overlap(
    profiles: Profiles, end: Literal["top", "bottom"] = "top", k: Count = 10
) -> Float64[np.ndarray, "T T"]:
    """Compute the overlap, in [0, 1], of the subspaces spanned by k right singular vectors, averaged over matrices.

    Formula: ‖VaᵀVb‖_F / √k, where V_t are the first or the last k right vectors of the thin SVD.

    Args:
        profiles: the models.
        end: "top" for the vectors of the largest singular values, "bottom" for those of the smallest.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, `end` is unknown, or a delta is not finite.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import right_overlap
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> right_overlap(profiles, k=1).round(3)
        array([[1., 0.],
               [0., 1.]])
    """
    squares = profiles.subspace_overlaps("right", end, k)
    sizes = _sizes(profiles, k)
    return _mean_over_matrices(
        (np.sqrt(square / size) for square, size in zip(squares, sizes, strict=True)), len(profiles.tasks)
    )


@metric(category="subspace", low=0, high=1, equal=1)
def interaction_overlap(
    profiles: Profiles, end: Literal["top", "bottom"] = "top", k: Count = 10
) -> Float64[np.ndarray, "T T"]:
    """Compute the mean squared singular value of the interaction matrix VaᵀVb, in [0, 1], averaged over matrices.

    Formula: ‖VaᵀVb‖²_F / k, where V_t are the first or the last k right vectors of the thin SVD.

    Args:
        profiles: the models.
        end: "top" for the vectors of the largest singular values, "bottom" for those of the smallest.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, `end` is unknown, or a delta is not finite.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import interaction_overlap
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> interaction_overlap(profiles, k=1).round(3)
        array([[1., 0.],
               [0., 1.]])
    """
    squares = profiles.subspace_overlaps("right", end, k)
    sizes = _sizes(profiles, k)
    return _mean_over_matrices(
        (square / size for square, size in zip(squares, sizes, strict=True)), len(profiles.tasks)
    )


@metric(category="subspace", low=-1, high=1, on_request=True)
def left_overlap_excess(profiles: Profiles, k: Count = 10) -> Float64[np.ndarray, "T T"]:
    """Compute how far the overlap of leading left subspaces exceeds that of random subspaces, in (−1, 1).

    ‖UaᵀUb‖²_F is k²/m on average for random subspaces of Rᵐ, and k for equal ones: without the second term, the
    overlap of unrelated matrices depends on their shape. 0 at about chance. Divided by √k, unlike `left_overlap`.

    Formula: ‖UaᵀUb‖_F / √k − √(k/m).

    Range: (−1, 1), without a unit; about 0 for unrelated models.

    Args:
        profiles: the models.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, or a delta is not finite.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import left_overlap_excess
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> left_overlap_excess(profiles, k=1).round(3)
        array([[ 0.293, -0.707],
               [-0.707,  0.293]])
    """
    squares, sizes = profiles.subspace_overlaps("left", "top", k), _sizes(profiles, k)
    chance = np.sqrt(sizes / _extents(profiles, 0))
    excess = (np.sqrt(square / size) - one for square, size, one in zip(squares, sizes, chance, strict=True))
    return _mean_over_matrices(excess, len(profiles.tasks))


@metric(category="subspace", low=-1, high=1, on_request=True)
def right_overlap_excess(
    profiles: Profiles, end: Literal["top", "bottom"] = "top", k: Count = 10
) -> Float64[np.ndarray, "T T"]:
    """Compute how far the overlap of right subspaces exceeds that of random subspaces, in (−1, 1).

    0 at about chance: see `left_overlap_excess`; the right vectors lie in Rⁿ.

    Formula: ‖VaᵀVb‖_F / √k − √(k/n), where V_t are the first or the last k right vectors of the thin SVD.

    Range: (−1, 1), without a unit; about 0 for unrelated models.

    Args:
        profiles: the models.
        end: "top" for the vectors of the largest singular values, "bottom" for those of the smallest.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, `end` is unknown, or a delta is not finite.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import right_overlap_excess
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> right_overlap_excess(profiles, k=1).round(3)
        array([[ 0.423, -0.577],
               [-0.577,  0.423]])
    """
    squares, sizes = profiles.subspace_overlaps("right", end, k), _sizes(profiles, k)
    chance = np.sqrt(sizes / _extents(profiles, 1))
    excess = (np.sqrt(square / size) - one for square, size, one in zip(squares, sizes, chance, strict=True))
    return _mean_over_matrices(excess, len(profiles.tasks))


@metric(category="subspace", low=-1, high=1, on_request=True)
def interaction_overlap_excess(
    profiles: Profiles, end: Literal["top", "bottom"] = "top", k: Count = 10
) -> Float64[np.ndarray, "T T"]:
    """Compute how far `interaction_overlap` exceeds its value for random subspaces, in (−1, 1), averaged over matrices.

    Random subspaces of Rⁿ give 0 on average, exactly.

    Formula: ‖VaᵀVb‖²_F / k − k/n, where V_t are the first or the last k right vectors of the thin SVD.

    Range: (−1, 1), without a unit; 0 on average for unrelated models.

    Args:
        profiles: the models.
        end: "top" for the vectors of the largest singular values, "bottom" for those of the smallest.
        k: number of singular vectors, at least 1; clipped to min(m, n).

    Raises:
        UserError: `k` is below 1, `end` is unknown, or a delta is not finite.

    Source: this project; not published elsewhere.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.subspace import interaction_overlap_excess
        >>> profiles = Profiles(tiny_task_vectors(cars=[[3, 0, 0], [0, 1, 0]], svhn=[[0, 0, 0], [0, 2, 0]]))
        >>> interaction_overlap_excess(profiles, k=1).round(3)
        array([[ 0.667, -0.333],
               [-0.333,  0.667]])
    """
    squares, sizes = profiles.subspace_overlaps("right", end, k), _sizes(profiles, k)
    chance = sizes / _extents(profiles, 1)
    excess = (square / size - one for square, size, one in zip(squares, sizes, chance, strict=True))
    return _mean_over_matrices(excess, len(profiles.tasks))


def _extents(profiles: Profiles, axis: int) -> Float64[np.ndarray, "L 1 1"]:
    """Return m (axis 0), the dimension of the left vectors' space, or n (axis 1), that of the right ones'."""
    return profiles.matrix_shapes()[:, axis].astype(np.float64)[:, None, None]


def _sizes(profiles: Profiles, k: int) -> Float64[np.ndarray, "L 1 1"]:
    return profiles.subspace_sizes(k).astype(np.float64)[:, None, None]


def _mean_over_matrices(
    values: Iterable[Float64[np.ndarray, "T T"]], tasks: int
) -> Float64[np.ndarray, "T T"]:
    """Average over the matrices where the pair's value is defined, one after another: all of them may take GiB."""
    total, count = np.zeros((tasks, tasks)), np.zeros((tasks, tasks), dtype=np.int64)
    for of_layer in values:
        defined = ~np.isnan(of_layer)
        total += np.where(defined, of_layer, 0)
        count += defined
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
