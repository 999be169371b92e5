"""Represent each model by one vector, and compute metrics from the T×T Gram matrix of these vectors.

The option `view` selects the vector: `task_vector`, `activation`, `encoder_gradient` or `input_gradient`. One function
therefore serves several of the published metrics. Beyond these, `linear_cka` compares kernels of activations.
"""

import numpy as np
from jaxtyping import Float64

from mergeability.metrics.traits import metric
from mergeability.profiles.profiles import Profiles

# Below this norm the published definition calls the magnitude ratio 0.
_SMALLEST_NORM = 1e-8


@metric(category="geometry", low=-1, high=1, equal=1)
def cosine_similarity(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the cosine of the angle between two vectors, in [−1, 1]; NaN if either vector is zero.

    Formula: ⟨a, b⟩ / (‖a‖ ‖b‖).

    Args:
        profiles: the models.
        view: vector per model: "task_vector", "activation", "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.gram import cosine_similarity
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[4, 4]))
        >>> cosine_similarity(profiles, view="task_vector").round(3)
        array([[1.   , 0.707],
               [0.707, 1.   ]])
    """
    gram = profiles.gram(view)
    norms = _norms(gram)
    defined = (norms[:, None] > 0) & (norms[None, :] > 0)
    cosine = np.full_like(gram, np.nan)
    # Divide by one norm after the other, because the product of two tiny norms can underflow; the larger first, so
    # that swapping the pair does not change the last bit.
    smaller, larger = np.minimum.outer(norms, norms), np.maximum.outer(norms, norms)
    return np.divide(gram / np.where(larger > 0, larger, 1), smaller, out=cosine, where=defined)


@metric(category="geometry", low=0, equal=0)
def l2_distance(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the Euclidean distance between two vectors, in [0, ∞).

    Formula: ‖a − b‖₂ = √(‖a‖² + ‖b‖² − 2⟨a, b⟩).

    Range: [0, ∞), in the units of the vectors.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", "activation", "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.gram import l2_distance
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[4, 4]))
        >>> l2_distance(profiles, view="task_vector").round(3)
        array([[0.   , 4.123],
               [4.123, 0.   ]])
    """
    gram = profiles.gram(view)
    squares = np.diag(gram)
    # Rounding can leave a tiny negative square for identical vectors.
    return np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0))


@metric(category="geometry")
def dot_product(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the dot product of two vectors.

    Formula: ⟨a, b⟩ = Σ aᵢ bᵢ.

    Range: (−∞, ∞), in squared units of the vectors.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", "activation", "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.gram import dot_product
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[4, 4]))
        >>> dot_product(profiles, view="task_vector").round(3)
        array([[ 9., 12.],
               [12., 32.]])
    """
    return profiles.gram(view)


@metric(category="geometry", low=0, high=180, equal=0)
def angle(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the angle between two vectors in degrees, in [0, 180]; NaN if either vector is zero.

    Formula: arccos(⟨a, b⟩ / (‖a‖ ‖b‖)) · 180/π.

    Range: [0, 180], in degrees.

    Args:
        profiles: the models.
        view: vector per model: "task_vector", "activation", "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.gram import angle
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[4, 4]))
        >>> angle(profiles, view="task_vector").round(3)
        array([[ 0., 45.],
               [45.,  0.]])
    """
    return np.degrees(np.arccos(np.clip(cosine_similarity(profiles, view), -1, 1)))


@metric(category="geometry", low=0, high=1, equal=1)
def magnitude_ratio(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the ratio, in [0, 1], of the smaller to the larger of two vectors' norms; 0 if either norm is below 1e-8.

    Formula: min(‖a‖, ‖b‖) / max(‖a‖, ‖b‖).

    Args:
        profiles: the models.
        view: vector per model: "task_vector", "activation", "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is unknown, not finite, or needs data that the profiles do not have.

    Paper: arXiv 2601.22285.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.gram import magnitude_ratio
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[4, 4]))
        >>> magnitude_ratio(profiles, view="task_vector").round(3)
        array([[1.  , 0.53],
               [0.53, 1.  ]])
    """
    norms = _norms(profiles.gram(view))
    smaller, larger = np.minimum.outer(norms, norms), np.maximum.outer(norms, norms)
    return np.divide(smaller, larger, out=np.zeros_like(larger), where=smaller >= _SMALLEST_NORM)


@metric(category="activation", low=0, high=1, equal=1, needs_data=True)
def linear_cka(profiles: Profiles) -> Float64[np.ndarray, "T T"]:
    """Compute the linear centred kernel alignment (CKA) of two models' activations, in [0, 1].

    X_t are the n×d activations of the pool's inputs (each the mean over its tokens), minus their mean over the
    inputs. The value is the cosine of the flattened n×n kernels X_tX_tᵀ. 1 if the
    activations are equal up to rotation and scale; NaN if a model maps all inputs to one point.

    Formula: ‖X_aᵀX_b‖²_F / (‖X_aᵀX_a‖_F ‖X_bᵀX_b‖_F).

    Args:
        profiles: the models.

    Raises:
        UserError: the profiles have no images, or an activation is not finite.

    Paper: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv 1905.00414.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.gram import linear_cka
        >>> linear_cka(tiny_profiles("cars", "svhn")).round(3)
        array([[1.   , 0.978],
               [0.978, 1.   ]])
    """
    return cosine_similarity(profiles, "activation_kernel")


def _norms(gram: Float64[np.ndarray, "T T"]) -> Float64[np.ndarray, "T"]:
    return np.sqrt(np.diag(gram))
