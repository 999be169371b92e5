"""Compute metrics from the singular values s₁ ≥ s₂ of the 2×D matrix [a; b], whose rows are two task vectors.

The singular values are the square roots of the eigenvalues of the pair's 2×2 Gram matrix, so no SVD is needed. In
float64: the determinant cancels badly in float32 for nearly parallel vectors. All of them are NaN if a
model equals the base, except the layerwise ones, which skip what did not change.
"""

import numpy as np
from jaxtyping import Float64

from mergeability.metrics.traits import metric
from mergeability.profiles.profiles import Profiles

# Layerwise rank skips tensors with a smaller change.
_SMALLEST_NORM = 1e-10
# Number of models whose pairs with all others are processed together.
_TOGETHER = 64


@metric(category="effective rank", low=1, high=2, equal=1)
def effective_rank(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the effective rank (Roy & Vetterli 2007) of two task vectors, in [1, 2]; it is 1 for parallel vectors.

    Formula: exp(−Σ pᵢ log pᵢ), where pᵢ = sᵢ / Σ s.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import effective_rank
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> effective_rank(profiles).round(3)
        array([[1.  , 1.98],
               [1.98, 1.  ]])
    """
    return _effective_rank(*_singular_values(_without_zeros(profiles.gram(view))))


@metric(category="effective rank", low=0, high=1, equal=1)
def mergeability_score(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the mergeability score 2 − effective rank, in [0, 1]; it is 1 for parallel task vectors.

    Formula: 2 − effective rank, clipped to [0, 1].

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import mergeability_score
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> mergeability_score(profiles).round(3)
        array([[1.  , 0.02],
               [0.02, 1.  ]])
    """
    return np.clip(2 - effective_rank(profiles, view), 0, 1)


@metric(category="effective rank", low=1, high=2, equal=1)
def stable_rank(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the stable rank of two task vectors, in [1, 2]; it is 1 for parallel vectors.

    The name is the paper's; elsewhere the stable rank is ‖·‖²_F / ‖·‖²₂.

    Formula: (s₁ + s₂)² / (s₁² + s₂²).

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import stable_rank
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> stable_rank(profiles).round(3)
        array([[1.  , 1.96],
               [1.96, 1.  ]])
    """
    first, second = _singular_values(_without_zeros(profiles.gram(view)))
    return (first + second) ** 2 / (first**2 + second**2)


@metric(category="effective rank", low=0, high=1, equal=1)
def spectral_gap(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the spectral gap (s₁ − s₂) / s₁, in [0, 1]; it is 1 for parallel task vectors.

    Formula: (s₁ − s₂) / s₁.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import spectral_gap
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> spectral_gap(profiles).round(3)
        array([[1.  , 0.25],
               [0.25, 1.  ]])
    """
    return 1 - singular_value_ratio(profiles, view)


@metric(category="effective rank", low=0, high=1, equal=0)
def singular_value_ratio(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the ratio s₂ / s₁ of the singular values of [a; b], in [0, 1]; 1 for orthogonal vectors of equal length.

    Formula: s₂ / s₁.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import singular_value_ratio
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> singular_value_ratio(profiles).round(3)
        array([[0.  , 0.75],
               [0.75, 0.  ]])
    """
    first, second = _singular_values(_without_zeros(profiles.gram(view)))
    return second / first


@metric(category="effective rank", low=1, high=2, equal=1)
def layerwise_effective_rank(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Average the effective rank of the two deltas over tensors, weighted by norm; the result is in [1, 2].

    erₗ is the effective rank of the tensor's two deltas. Tensors where either norm is below 1e-10 are
    skipped; the value is 2 if none is left.

    Formula: Σ wₗ erₗ / Σ wₗ over parameter tensors l, where wₗ = ‖aₗ‖ + ‖bₗ‖.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import layerwise_effective_rank
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> layerwise_effective_rank(profiles).round(3)
        array([[1.  , 1.98],
               [1.98, 1.  ]])
    """
    grams = profiles.layer_grams(view)
    total, weighted = np.zeros(grams.shape[1:]), np.zeros(grams.shape[1:])
    norms = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    moved = norms >= _SMALLEST_NORM
    # Some models after the others: L×T×T numbers take GiB for many models, and the sum over all L tensors at once is
    # pairwise.
    for first in range(0, grams.shape[1], _TOGETHER):
        rows = slice(first, first + _TOGETHER)
        counted = moved[:, rows, None] & moved[:, None, :]
        weights = np.where(counted, norms[:, rows, None] + norms[:, None, :], 0)
        values = _singular_values(np.where(counted, grams[:, rows], np.nan), (norms[:, rows] ** 2, norms**2))
        ranks = _effective_rank(*values)
        total[rows] = weights.sum(0)
        weighted[rows] = np.where(counted, weights * ranks, 0).sum(0)
    return np.divide(weighted, total, out=np.full_like(total, 2.0), where=total > 0)


@metric(category="effective rank", low=0, high=1, equal=1)
def layerwise_mergeability_score(profiles: Profiles, view: str = "task_vector") -> Float64[np.ndarray, "T T"]:
    """Compute the layerwise mergeability score 2 − layerwise effective rank, clipped to [0, 1].

    Formula: 2 − layerwise effective rank, clipped to [0, 1].

    Args:
        profiles: the models.
        view: vector per model: "task_vector", or a view of activations or gradients.

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.rank import layerwise_mergeability_score
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[0, 4]))
        >>> layerwise_mergeability_score(profiles).round(3)
        array([[1.  , 0.02],
               [0.02, 1.  ]])
    """
    return np.clip(2 - layerwise_effective_rank(profiles, view), 0, 1)


def _without_zeros(gram: Float64[np.ndarray, "T T"]) -> Float64[np.ndarray, "T T"]:
    """Set the pairs of a model equal to the base to NaN, because it has no direction."""
    zero = np.diag(gram) == 0
    return np.where(zero[:, None] | zero[None, :], np.nan, gram)


def _singular_values(
    gram: Float64[np.ndarray, "*L R T"],
    squares: tuple[Float64[np.ndarray, "*L R"], Float64[np.ndarray, "*L T"]] | None = None,
) -> tuple[Float64[np.ndarray, "*L R T"], Float64[np.ndarray, "*L R T"]]:
    """Compute s₁ and s₂ of every pair from its 2×2 Gram matrix [[‖a‖², ⟨a,b⟩], [⟨a,b⟩, ‖b‖²]].

    `squares` are ‖a‖² and ‖b‖² where `gram` is not square; otherwise they are its diagonal.
    """
    rows, columns = (np.diagonal(gram, axis1=-2, axis2=-1),) * 2 if squares is None else squares
    left, right = rows[..., :, None], columns[..., None, :]
    largest = (left + right) / 2 + np.hypot((left - right) / 2, gram)
    # Computed from the determinant, because the difference of two large numbers would cancel.
    smallest = np.maximum(left * right - gram**2, 0) / np.where(largest > 0, largest, np.nan)
    return np.sqrt(largest), np.sqrt(smallest)


def _effective_rank(
    first: Float64[np.ndarray, "*L R T"], second: Float64[np.ndarray, "*L R T"]
) -> Float64[np.ndarray, "*L R T"]:
    share = second / (first + second)
    return np.exp(-_entropy_term(share) - _entropy_term(1 - share))


def _entropy_term(share: Float64[np.ndarray, "*L R T"]) -> Float64[np.ndarray, "*L R T"]:
    """Compute p log p, which is 0 at p = 0."""
    return share * np.log(np.where(share > 0, share, 1))
