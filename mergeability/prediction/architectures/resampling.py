"""Intervals of statistics over several analyses: the jackknife over tasks and over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval.

    Attributes:
        value: the statistic; NaN if it is undefined.
        low: lower end of the interval; NaN if it is unknown.
        high: upper end.
        error_tasks: standard error over tasks.
        error_seeds: standard error over seeds; NaN if there are too few seeds.

    Examples:
        >>> from mergeability.prediction.architectures.resampling import Estimate
        >>> Estimate(0.5, 0.4, 0.6).known
        True
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    error_tasks: float = float("nan")
    error_seeds: float = float("nan")

    @property
    def known(self) -> bool:
        """Whether the statistic has an interval."""
        return bool(np.isfinite([self.value, self.low, self.high]).all())

    def columns(self, name: str) -> dict[str, float]:
        """Return the statistic as `name`, and the ends of its interval as `<name>_low` and `<name>_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def estimate(
    statistic: Callable[[str | None, int | None], float],
    tasks: Sequence[str],
    seeds: Sequence[int],
    bounds: tuple[float, float] | None = (-1.0, 1.0),
) -> Estimate:
    """Compute a statistic and its 95 % interval over tasks and seeds.

    The squared standard error is that over tasks plus that over seeds. Over tasks, pairs that share one are
    correlated: SE² = (T - 2)/(2T) Σ (θ₋ₜ - θ̄)², the jackknife for networks, in which all pairs of a task are left out
    of all analyses at once (Snijders and Borgatti, 1999). Over seeds, SE² = (S - 1)/S Σ (θ₋ₛ - θ̄)², which for a mean
    over seeds is its usual standard error. The sum errs on the wide side.

    Args:
        statistic: called with the task and the seed to leave out, None for none; NaN if it is undefined.
        tasks: the tasks to leave out, of the analyses that the statistic depends on.
        seeds: the seeds to leave out.
        bounds: of the statistic, at which its interval is cut off.

    Returns:
        The estimate. Without any seed whose omission leaves the statistic defined, its interval is over tasks only.

    Examples:
        >>> from mergeability.prediction.architectures.resampling import estimate
        >>> values = {0: 0.4, 1: 0.5, 2: 0.6}
        >>> def mean(task, seed):
        ...     kept = [value for one, value in values.items() if one != seed]
        ...     return sum(kept) / len(kept)
        >>> found = estimate(mean, [], [0, 1, 2])
        >>> [round(one, 3) for one in (found.value, found.low, found.high)]
        [0.5, 0.387, 0.613]
    """
    value = float(statistic(None, None))
    if np.isnan(value):
        return Estimate(value)
    without = np.array([statistic(task, None) for task in tasks], dtype=float)
    error_tasks = _over_tasks(without)
    over_seeds = np.array([statistic(None, seed) for seed in seeds] if len(seeds) > 1 else [], dtype=float)
    count = len(over_seeds)
    error_seeds = float("nan")
    if count > 1 and not np.isnan(over_seeds).any():
        error_seeds = float(np.sqrt((count - 1) / count * ((over_seeds - over_seeds.mean()) ** 2).sum()))
    errors = np.array([one for one in (error_tasks, error_seeds) if not np.isnan(one)])
    if not len(errors):
        return Estimate(value)
    half = _NORMAL_95 * float(np.sqrt((errors**2).sum()))
    low, high = value - half, value + half
    if bounds is not None:
        low, high = float(max(low, bounds[0])), float(min(high, bounds[1]))
    return Estimate(value, low, high, error_tasks, error_seeds)


def _over_tasks(without: np.ndarray) -> float:
    without = without[~np.isnan(without)]
    count = len(without)
    if count < 3:
        return float("nan")
    return float(np.sqrt((count - 2) / (2 * count) * ((without - without.mean()) ** 2).sum()))
