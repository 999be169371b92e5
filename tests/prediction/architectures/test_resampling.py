"""Intervals over tasks and seeds, against the formulas of a mean."""

import numpy as np
import pytest

from mergeability.prediction.architectures.resampling import estimate


def test_over_seeds_it_is_the_standard_error_of_a_mean():
    values = np.array([0.1, 0.4, 0.6, 0.2])

    def mean(task, seed):
        return float(np.delete(values, seed).mean() if seed is not None else values.mean())

    found = estimate(mean, [], range(4))
    error = values.std(ddof=1) / 2
    assert found.error_seeds == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=1e-4
    )
    assert np.isnan(found.error_tasks)


def test_both_errors_add_in_squares():
    by_task = {"a": 0.1, "b": 0.5, "c": 0.3}

    def statistic(task, seed):
        return sum(value for name, value in by_task.items() if name != task) + (
            0.0 if seed is None else 0.1 * seed
        )

    found = estimate(statistic, list(by_task), [0, 1], None)
    without = np.array([0.8, 0.4, 0.6])
    over_tasks = np.sqrt((3 - 2) / (2 * 3) * ((without - without.mean()) ** 2).sum())
    over_seeds = np.sqrt(1 / 2 * ((np.array([0.9, 1.0]) - 0.95) ** 2).sum())
    assert found.error_tasks == pytest.approx(over_tasks)
    assert found.error_seeds == pytest.approx(over_seeds)
    assert found.high - found.value == pytest.approx(1.959964 * np.hypot(over_tasks, over_seeds))


def test_bounds_cut_the_interval_off():
    found = estimate(lambda task, seed: 0.9 if seed is None else [0.7, 1.1][seed], [], [0, 1])
    assert (found.value, found.high) == (0.9, 1.0)


def test_without_seeds_and_tasks_there_is_no_interval():
    found = estimate(lambda task, seed: 0.5, [], [0])
    assert found.value == 0.5
    assert not found.known


def test_a_statistic_that_needs_two_seeds_has_an_interval_over_tasks_only():
    def between_seeds(task, seed):
        return float("nan") if seed is not None else 0.5 + 0.1 * ("abcd".index(task) if task else 0)

    found = estimate(between_seeds, "abcd", [0, 1])
    assert found.known
    assert np.isnan(found.error_seeds)


def test_an_undefined_statistic_stays_undefined():
    assert np.isnan(estimate(lambda task, seed: float("nan"), "abcd", [0, 1]).value)
