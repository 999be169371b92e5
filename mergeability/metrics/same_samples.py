"""Compare the gradients of two models on the samples of both models' tasks.

The option `view` selects the gradient: `encoder_gradient` or `input_gradient`. The published metrics of these names
take each model's gradient on its own task's samples instead. These here need two passes per pair, so they are not
in `metric=all`.
"""

import numpy as np
from jaxtyping import Float64

from mergeability.metrics.traits import metric
from mergeability.profiles.profiles import Profiles


@metric(category="gradient", low=-1, high=1, equal=1, needs_data=True, per_pair=True)
def cosine_similarity(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the cosine of two gradients on the same samples, in [−1, 1]; NaN if either gradient is zero.

    Formula: ⟨a, b⟩ / (‖a‖ ‖b‖).

    Args:
        profiles: the models.
        view: "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is not one of gradients, a gradient is not finite, or the profiles have no data.

    Paper: arXiv 2601.22285, on the samples of both tasks instead of each model's own.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.same_samples import cosine_similarity
        >>> cosine_similarity(tiny_profiles("cars", "svhn"), view="encoder_gradient").round(2)
        array([[1.  , 0.91],
               [0.91, 1.  ]])
    """
    grams = profiles.shared_grams(view)
    left, right = np.sqrt(grams[..., 0, 0]), np.sqrt(grams[..., 1, 1])
    defined = (left > 0) & (right > 0)
    cosine = np.full_like(left, np.nan)
    # One norm after the other: the product of two tiny norms can underflow.
    return np.divide(grams[..., 0, 1] / np.where(left > 0, left, 1), right, out=cosine, where=defined)


@metric(category="gradient", low=0, equal=0, needs_data=True, per_pair=True)
def l2_distance(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the Euclidean distance of two gradients on the same samples, in [0, ∞).

    Formula: ‖a − b‖₂ = √(‖a‖² + ‖b‖² − 2⟨a, b⟩).

    Range: [0, ∞), in the units of the gradients.

    Args:
        profiles: the models.
        view: "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is not one of gradients, a gradient is not finite, or the profiles have no data.

    Paper: arXiv 2601.22285, on the samples of both tasks instead of each model's own.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.same_samples import l2_distance
        >>> l2_distance(tiny_profiles("cars", "svhn"), view="encoder_gradient").round(2)
        array([[0.  , 0.43],
               [0.43, 0.  ]])
    """
    grams = profiles.shared_grams(view)
    # Rounding can leave a tiny negative square for identical gradients.
    return np.sqrt(np.maximum(grams[..., 0, 0] + grams[..., 1, 1] - 2 * grams[..., 0, 1], 0))


@metric(category="gradient", needs_data=True, per_pair=True)
def dot_product(profiles: Profiles, view: str) -> Float64[np.ndarray, "T T"]:
    """Compute the dot product of two gradients on the same samples.

    Formula: ⟨a, b⟩ = Σ aᵢ bᵢ.

    Range: (−∞, ∞), in squared units of the gradients.

    Args:
        profiles: the models.
        view: "encoder_gradient" or "input_gradient".

    Raises:
        UserError: the view is not one of gradients, a gradient is not finite, or the profiles have no data.

    Paper: arXiv 2601.22285, on the samples of both tasks instead of each model's own.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.metrics.same_samples import dot_product
        >>> dot_product(tiny_profiles("cars", "svhn"), view="encoder_gradient").round(2)
        array([[2.22, 0.97],
               [0.97, 1.95]])
    """
    return profiles.shared_grams(view)[..., 0, 1]
