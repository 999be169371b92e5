"""Scores against SciPy and scikit-learn, and where they are undefined."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import r2_score

from mergeability.prediction.validation import scores


@pytest.fixture
def pair():
    generator = np.random.default_rng(3)
    measured = generator.normal(size=40)
    return measured + generator.normal(size=40), np.round(measured, 1)  # rounding makes ties for the ranks


def test_correlations_and_error_match_scipy_and_sklearn(pair):
    predicted, measured = pair
    assert scores.pearson_r(predicted, measured) == pytest.approx(stats.pearsonr(predicted, measured)[0])
    assert scores.spearman_rho(predicted, measured) == pytest.approx(stats.spearmanr(predicted, measured)[0])
    assert scores.mean_absolute_error(predicted, measured) == pytest.approx(sklearn_mae(measured, predicted))


def test_r2_with_the_rows_own_mean_is_sklearns(pair):
    predicted, measured = pair
    mean = np.full_like(measured, measured.mean())
    assert scores.r2_over_training_mean(predicted, measured, mean) == pytest.approx(
        r2_score(measured, predicted)
    )


def test_r2_is_zero_for_the_training_mean_itself_even_where_it_differs_from_the_rows_mean():
    measured, mean = np.array([1.0, 2.0, 4.0]), np.full(3, 9.0)
    assert scores.r2_over_training_mean(mean, measured, mean) == 0.0
    assert np.isnan(scores.r2_over_training_mean(measured, mean, mean))


@pytest.mark.parametrize("score", [scores.pearson_r, scores.spearman_rho])
@pytest.mark.parametrize(
    ("predicted", "measured"),
    [
        ([1.0, 2.0], [1.0, 3.0]),
        ([0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 3.0]),  # constant but for rounding
        ([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]),
        ([], []),
    ],
)
def test_too_few_or_constant_has_no_correlation(score, predicted, measured):
    assert np.isnan(score(np.array(predicted), np.array(measured)))


def test_mean_and_std_pass_over_the_undefined():
    assert scores.mean_and_std(np.array([1.0, np.nan, 3.0])) == (2.0, 1.0)
    assert all(np.isnan(scores.mean_and_std(np.array([np.nan]))))


def test_interval_is_the_jackknife_over_tasks_by_a_plain_loop():
    generator = np.random.default_rng(0)
    tasks = list("abcdefg")
    ends = np.array(list(combinations(tasks, 2)), dtype=object)
    effects = dict(zip(tasks, generator.normal(size=7), strict=True))
    measured = np.array([effects[a] + effects[b] for a, b in ends])
    predicted = measured + generator.normal(size=21)
    without = []
    for task in tasks:
        kept = [i for i, pair in enumerate(ends) if task not in pair]
        without.append(np.arctanh(stats.pearsonr(predicted[kept], measured[kept])[0]))
    error = np.sqrt((7 - 2) / (2 * 7) * sum((z - np.mean(without)) ** 2 for z in without))
    z = np.arctanh(stats.pearsonr(predicted, measured)[0])
    half = stats.norm.ppf(0.975) * error
    expected = (np.tanh(z - half), np.tanh(z + half))
    assert scores.interval_over_tasks(predicted, measured, ends) == pytest.approx(expected, abs=1e-6)
    # Which of the two tasks comes first, and that a pair is there twice, changes nothing.
    assert scores.interval_over_tasks(predicted, measured, ends[:, ::-1]) == pytest.approx(expected)
    twice = scores.interval_over_tasks(np.tile(predicted, 2), np.tile(measured, 2), np.tile(ends, (2, 1)))
    assert twice == pytest.approx(expected)


def test_interval_is_undefined_where_a_correlation_is_and_closes_at_a_perfect_one():
    four = np.array(list(combinations("abcd", 2)), dtype=object)
    values = np.arange(6.0)
    low, high = scores.interval_over_tasks(2 * values, values, four)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)
    assert all(np.isnan(scores.interval_over_tasks(0 * values, values, four)))
    # Without c three pairs are left that do not vary.
    flat = np.array([1.0, 2, 1, 3, 1, 4])
    assert all(np.isnan(scores.interval_over_tasks(flat, values, four)))


def test_of_no_values_nothing_is_known():
    assert scores.is_constant(np.empty(0))
    assert scores.is_constant_column(np.empty((0, 3))).tolist() == [True, True, True]
    assert np.isnan(scores.mean_absolute_error(np.empty(0), np.empty(0)))
