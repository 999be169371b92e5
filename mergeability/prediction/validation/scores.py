"""Compute scores of predictions against measured outcomes; undefined scores are NaN."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

MIN_PAIRS = 3
"""Two points always correlate perfectly: a correlation needs a third."""

_LEAST_SPREAD = 1e-2
"""What spreads less than this share of the outcomes around the training mean predicts nothing beyond it."""

_ALMOST_ONE = 1 - 1e-12
_NORMAL_95 = 1.959964
_RELATIVE_SPREAD = 1e-9
"""Below this spread, relative to their size, numbers differ by rounding only and count as constant."""


def is_constant(values: Float[np.ndarray, " n"]) -> bool:
    """Return whether all values are equal up to rounding."""
    if values.size == 0:
        return True
    return bool(np.ptp(values) <= _RELATIVE_SPREAD * np.abs(values).max())


def is_constant_column(values: Float[np.ndarray, "n m"]) -> Bool[np.ndarray, " m"]:
    """Return for each column whether it is constant, as defined by `is_constant`.

    Examples:
        >>> is_constant_column(np.array([[1.0, 2.0], [1.0, 3.0]]))
        array([ True, False])
    """
    if values.shape[0] == 0:
        return np.ones(values.shape[1], dtype=bool)
    return np.ptp(values, axis=0) <= _RELATIVE_SPREAD * np.abs(values).max(axis=0)


def pearson_r(predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"]) -> float:
    """Return Pearson's correlation: cov(p, m) / (std p · std m), in [-1, 1].

    It is NaN for fewer than three pairs, or if `predicted` or `measured` is constant.
    """
    if len(measured) < MIN_PAIRS or is_constant(predicted) or is_constant(measured):
        return float("nan")
    predicted = predicted - predicted.mean()
    measured = measured - measured.mean()
    r = predicted @ measured / np.sqrt((predicted @ predicted) * (measured @ measured))
    return float(np.clip(r, -1.0, 1.0))


def spearman_rho(predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"]) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; tied values get their mean rank.

    It is NaN for fewer than three pairs, or if `predicted` or `measured` is constant.
    """
    # Test for constant values before ranking, which would turn rounding errors into distinct ranks.
    if len(measured) < MIN_PAIRS or is_constant(predicted) or is_constant(measured):
        return float("nan")
    return pearson_r(rankdata(predicted), rankdata(measured))


def interval_over_tasks(
    predicted: Float[np.ndarray, " n"],
    measured: Float[np.ndarray, " n"],
    ends: np.ndarray,
    correlate: Callable[..., float] = pearson_r,
) -> tuple[float, float]:
    """Estimate a 95 % confidence interval of r that accounts for pairs sharing a task.

    The jackknife over tasks is applied to Fisher's z = artanh r: SE² = (T - 2)/(2T) Σ (z₋ₜ - z̄)², with z₋ₜ computed
    without the pairs of task t.

    Source: Snijders and Borgatti, 1999, for statistics of networks.

    Args:
        predicted: one number per pair.
        measured: one number per pair.
        ends: the two tasks of each pair, (n, 2).
        correlate: the correlation; Pearson's by default.

    Returns:
        The lower and the upper end, in [-1, 1]; NaN if any of these correlations is undefined.
    """
    tasks = list(dict.fromkeys(ends.ravel().tolist()))
    kept = [~(ends == task).any(axis=1) for task in tasks]
    without = np.array([correlate(predicted[one], measured[one]) for one in kept])
    return jackknife_interval(correlate(predicted, measured), without)


def jackknife_interval(whole: float, without: Float[np.ndarray, " T"]) -> tuple[float, float]:
    """Use a jackknife over tasks to compute a 95 % interval, within [-1, 1], of a correlation or mean correlation.

    Args:
        whole: the correlation over all pairs.
        without: the same without the pairs of each task in turn.

    Examples:
        >>> jackknife_interval(0.0, np.zeros(5))
        (0.0, 0.0)
    """
    count = len(without)
    # At r = ±1 z is infinite.
    each = np.arctanh(np.clip(without, -_ALMOST_ONE, _ALMOST_ONE))
    error = np.sqrt((count - 2) / (2 * count) * ((each - each.mean()) ** 2).sum())
    z = np.arctanh(np.clip(whole, -_ALMOST_ONE, _ALMOST_ONE))
    return float(np.tanh(z - _NORMAL_95 * error)), float(np.tanh(z + _NORMAL_95 * error))


def beyond_training_mean(
    predicted: Float[np.ndarray, " n"],
    measured: Float[np.ndarray, " n"],
    training_mean: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Subtract each fold's training mean from predictions and outcomes, so that the mean does not affect r.

    Predictions whose standard deviation around that mean is below 1 % of that of the outcomes become 0: they are
    treated as equal to the mean.

    Args:
        predicted: one number per pair.
        measured: one number per pair.
        training_mean: for each pair, the mean of the fold that predicted it.

    Returns:
        Predictions and measurements relative to that mean.
    """
    beyond, measured_beyond = predicted - training_mean, measured - training_mean
    if beyond.std() < _LEAST_SPREAD * measured_beyond.std():
        beyond = np.zeros_like(beyond)
    return beyond, measured_beyond


def mean_absolute_error(predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"]) -> float:
    """Return the mean absolute error |predicted - measured|, in outcome units; NaN without pairs."""
    if len(measured) == 0:
        return float("nan")
    return float(np.abs(predicted - measured).mean())


def r2_over_training_mean(
    predicted: Float[np.ndarray, " n"],
    measured: Float[np.ndarray, " n"],
    training_mean: Float[np.ndarray, " n"],
) -> float:
    """Return R² with the training mean as the baseline: 1 - Σ(m - p)² / Σ(m - m̄_train)².

    The score is at most 1; it is 0 for the training mean, below 0 for worse predictions, and NaN if the training mean
    makes no error.

    Args:
        predicted: one number per pair.
        measured: one number per pair.
        training_mean: for each pair, the mean of the fold that predicted it.

    Returns:
        The score.
    """
    baseline = float(((measured - training_mean) ** 2).sum())
    if len(measured) == 0 or baseline == 0.0:
        return float("nan")
    return 1.0 - float(((measured - predicted) ** 2).sum()) / baseline


def mean_and_std(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the mean and the population standard deviation of the defined values; NaN without defined values."""
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    return float(defined.mean()), float(defined.std())
