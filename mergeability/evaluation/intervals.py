"""Estimate the sampling error of accuracies that are measured on some of the images.

All of them treat the images as a sample from an infinite population. A subset drawn without replacement is closer to
the accuracy on the whole test split, so for the accuracy on the split the intervals are conservative.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from mergeability.errors import UserError

# The two-sided 95 % quantile of the normal distribution, in standard deviations.
_DEVIATIONS = 1.959963984540054


def accuracy_variance(hits: Bool[np.ndarray, " N"]) -> float:
    """Estimate the variance of an accuracy measured on N images: p̃(1 − p̃)/(N + 4).

    p̃ is the share after adding two hits and two misses, so that the variance of a share of exactly 0 or 1 is not
    being 0.

    Raises:
        UserError: there are no images.

    Paper: Agresti and Coull 1998, Approximate is better than "exact" for interval estimation of binomial proportions.
    """
    if len(hits) == 0:
        raise UserError("Expected predictions for at least one image, got none.")
    count = len(hits) + 4
    share = (float(hits.sum()) + 2) / count
    return share * (1 - share) / count


def ratio_variance(merged: Bool[np.ndarray, " N"], tuned: Bool[np.ndarray, " N"]) -> float:
    """Estimate the variance of the normalised accuracy r = Σx/Σy of a merge (x) relative to the fine-tuned model (y).

    By the delta method, Var r ≈ (Var x − 2r·Cov(x, y) + r²·Var y)/(N·ȳ²): images on which both models agree contribute
    little. One image of each of the four outcomes is added, so that full agreement does not count as certainty.
    NaN if the fine-tuned model is never right.

    Args:
        merged: whether the merged model classifies each image correctly, x.
        tuned: whether the task's own model does, y.

    Raises:
        UserError: the two are not of the same images: their numbers differ, or there are none.

    Source: Cochran 1977, Sampling Techniques, 6.3 (ratio estimates).
    """
    if len(merged) != len(tuned) or len(tuned) == 0:
        raise UserError(
            f"Expected predictions of both models on the same images, got {len(merged)} and {len(tuned)}"
            " images."
        )
    if not tuned.any():
        return math.nan
    x = np.concatenate([merged, [True, True, False, False]]).astype(np.float64)
    y = np.concatenate([tuned, [True, False, True, False]]).astype(np.float64)
    ratio = x.mean() / y.mean()
    # The variance of x − r·y is the sum in the formula; its mean is 0.
    return float(np.var(x - ratio * y) / (len(x) * y.mean() ** 2))


def mean_interval(
    values: Sequence[float], variances: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of independent values: mean ± 1.96·√(Σ variances)/count.

    Tasks have images of their own, so their accuracies are independent given the models.

    Args:
        values: one a task.
        variances: of each value.
        bounds: what the mean cannot leave, such as (0, 1) for accuracies; the interval is cut off there.

    Raises:
        UserError: not one variance a value, or no value.
    """
    count = len(values)
    if count == 0 or len(variances) != count:
        raise UserError(f"Expected one variance per value, got {len(variances)} for {count} values.")
    middle = sum(values) / count
    margin = _DEVIATIONS * math.sqrt(sum(variances)) / count
    return max(middle - margin, bounds[0]), min(middle + margin, bounds[1])
