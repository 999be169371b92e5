"""Scores against SciPy and scikit-learn, and where they are undefined."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import r2_score

from mergeability.prediction import scores


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
