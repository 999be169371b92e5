"""Confidence intervals against SciPy, sums written out, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from mergeability.errors import UserError
from mergeability.evaluation.intervals import (
    accuracy_variance,
    mean_interval,
    ratio_variance,
)


def test_the_variance_of_a_share_counts_two_hits_and_two_misses_more():
    assert accuracy_variance(np.array([True, False, True, False, True, False])) == pytest.approx(
        0.5 * 0.5 / 10
    )
    assert accuracy_variance(np.ones(6, dtype=bool)) == pytest.approx(0.8 * 0.2 / 10)
    with pytest.raises(UserError, match="at least one image"):
        accuracy_variance(np.zeros(0, dtype=bool))


def ratio_interval(merged, tuned):
    """The 95 % interval of a normalised accuracy, as a merge of one model has it."""
    return mean_interval([merged.sum() / tuned.sum()], [ratio_variance(merged, tuned)], bounds=(0, math.inf))


def joint_hits(rng, count, both, merged_only, tuned_only):
    """Draw images that both models, or one of them, or none classifies right."""
    kind = rng.choice(4, size=count, p=[both, merged_only, tuned_only, 1 - both - merged_only - tuned_only])
    return (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)


def test_the_variance_of_the_ratio_is_the_delta_methods():
    merged, tuned = joint_hits(np.random.default_rng(0), 50, 0.6, 0.1, 0.2)
    x = np.array([*merged, 1, 1, 0, 0], dtype=float)
    y = np.array([*tuned, 1, 0, 1, 0], dtype=float)
    (var_x, covariance), (_, var_y) = np.cov(x, y, ddof=0)
    ratio = x.mean() / y.mean()
    expected = (var_x - 2 * ratio * covariance + ratio**2 * var_y) / (54 * y.mean() ** 2)
    assert ratio_variance(merged, tuned) == pytest.approx(expected, rel=1e-12)


# Shares of images right for both, for the merge alone and for the fine-tuned model alone.
SHARES = [(0.7, 0.05, 0.15), (0.88, 0.01, 0.1), (0.3, 0.1, 0.5), (0.2, 0.1, 0.2), (0.95, 0.02, 0.02)]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("images", [100, 400])
def test_the_ratios_interval_holds_the_truth_about_95_times_of_100(shares, images):
    rng, draws = np.random.default_rng(7), 1000
    truth = (shares[0] + shares[1]) / (shares[0] + shares[2])
    intervals = np.array([ratio_interval(*joint_hits(rng, images, *shares)) for _ in range(draws)])
    coverage = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    assert 0.92 <= coverage <= 0.99


def test_the_same_images_say_more_than_as_many_others():
    rng = np.random.default_rng(3)
    merged, tuned = joint_hits(rng, 2000, 0.8, 0.02, 0.08)
    low, high = ratio_interval(merged, tuned)
    other_low, other_high = ratio_interval(merged, rng.permutation(tuned))
    # √((Var x − 2r·Cov + r²·Var y)/(Var x + r²·Var y)) of these shares is √(0.0932/0.2393).
    assert (high - low) / (other_high - other_low) == pytest.approx(0.624, abs=0.03)


def test_the_ratios_interval_lies_around_the_ratio_and_is_normal():
    merged, tuned = joint_hits(np.random.default_rng(0), 200, 0.5, 0.1, 0.3)
    ratio, deviation = merged.sum() / tuned.sum(), math.sqrt(ratio_variance(merged, tuned))
    expected = stats.norm.interval(0.95, loc=ratio, scale=deviation)
    assert ratio_interval(merged, tuned) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_of_0_and_1_are_no_certainty(share):
    always, hits = np.ones(30, dtype=bool), np.full(30, share == 1.0)
    low, high = ratio_interval(hits, always)
    assert 0 <= low <= share < high < share + 0.2
    if share:
        assert low < share


def test_a_ratio_to_a_model_that_is_never_right_is_not_known():
    merged, never = np.array([True, False]), np.zeros(2, dtype=bool)
    assert np.isnan(ratio_variance(merged, never))


@pytest.mark.parametrize(("merged", "tuned"), [(3, 4), (0, 0)])
def test_hits_of_other_images_are_refused(merged, tuned):
    with pytest.raises(UserError, match=f"same images, got {merged} and {tuned}"):
        ratio_variance(np.ones(merged, dtype=bool), np.ones(tuned, dtype=bool))


def test_the_mean_of_independent_values_by_hand():
    low, high = mean_interval([0.5, 0.9], [0.0004, 0.0005])
    assert (low, high) == pytest.approx(stats.norm.interval(0.95, loc=0.7, scale=0.03 / 2), rel=1e-12)
    assert mean_interval([0.5, 0.9], [0.04, 0.05], bounds=(0.5, 0.8)) == (0.5, 0.8)


@pytest.mark.parametrize("variances", [[0.1], [0.1, 0.1, 0.1], []])
def test_each_value_needs_its_variance(variances):
    with pytest.raises(UserError, match=f"got {len(variances)} for 2 values"):
        mean_interval([0.5, 0.9], variances)
    with pytest.raises(UserError, match="0 values"):
        mean_interval([], [])


def test_the_interval_of_a_pairs_mean_holds_the_truth_about_95_times_of_100():
    rng, pair = np.random.default_rng(5), [SHARES[0], SHARES[2]]
    truth = np.mean([(both + merged) / (both + tuned) for both, merged, tuned in pair])
    held = []
    for _ in range(1000):
        hits = [joint_hits(rng, images, *shares) for images, shares in zip((300, 120), pair, strict=True)]
        ratios = [merged.sum() / tuned.sum() for merged, tuned in hits]
        low, high = mean_interval(ratios, [ratio_variance(*one) for one in hits])
        held.append(low <= truth <= high)
    assert 0.92 <= np.mean(held) <= 0.98
