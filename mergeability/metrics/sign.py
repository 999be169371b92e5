"""Compare the signs of task vectors."""

import numpy as np
from jaxtyping import Float64

from mergeability.metrics.traits import metric
from mergeability.profiles.profiles import Profiles


@metric(category="sign", low=0, high=1, equal=0, on_request=True)
def sign_conflict(profiles: Profiles, density: float | int = 0.2) -> Float64[np.ndarray, "T T"]:
    """Compute the share, in [0, 1], of opposite signs among the entries that are most changed in both models.

    A model keeps the `density` of its entries that is largest in magnitude over all parameters: the trimming of
    TIES (Yadav et al. 2023, arXiv 2306.01708), whose election of signs resolves these conflicts. About 0.5 for
    unrelated models; NaN if the two keep no entry in common.

    Formula: |{i : sign aᵢ ≠ sign bᵢ}| / |{i}|, i over the entries that both models keep.

    Args:
        profiles: the models.
        density: share of entries kept, in (0, 1].

    Raises:
        UserError: the density is out of range.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, for the trimming; the share is a metric of this
    project.

    Examples:
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.sign import sign_conflict
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 1, -2, 5], svhn=[4, -2, -1, 1]))
        >>> sign_conflict(profiles, density=1).round(3)
        array([[0.  , 0.25],
               [0.25, 0.  ]])
    """
    counts = profiles.sign_counts(density)
    shared = counts.shared.astype(np.float64)
    return np.divide(counts.opposite, shared, out=np.full_like(shared, np.nan), where=shared > 0)
