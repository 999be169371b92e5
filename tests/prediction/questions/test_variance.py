"""The variance split against explicit least squares and adjusted R²."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mergeability.prediction import PairTable
from mergeability.prediction.questions.variance import variance_split

TASKS = "abcdefgh"
METRICS = ["first", "second", "third"]


@pytest.fixture
def pairs():
    """Eight tasks; `ties` has task effects and a metric, `average` neither."""
    generator = np.random.default_rng(3)
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    effects = dict(zip(TASKS, generator.normal(size=8), strict=True))
    for metric in METRICS:
        frame[metric] = generator.normal(size=28)
    common = frame["task_a"].map(effects) + frame["task_b"].map(effects)
    frame["acc_ties"] = 5 + common + frame["first"] + 0.3 * generator.normal(size=28)
    frame["acc_average"] = generator.normal(size=28)
    return frame


def _split(frame, methods, metrics=METRICS):
    table = PairTable.validate(frame, metrics, [f"acc_{method}" for method in methods])
    return variance_split(table, [("acc", method) for method in methods]).set_index("method")


def _by_hand(frame, method):
    """R² of scikit-learn's least squares; what adjusted R² of the larger model gains, in shares of the whole."""
    y = frame[f"acc_{method}"].to_numpy()
    J = np.array([[float(t in pair) for t in TASKS] for pair in frame[["task_a", "task_b"]].to_numpy()])
    both = np.hstack([J, frame[METRICS]])
    small, large = LinearRegression().fit(J, y).score(J, y), LinearRegression().fit(both, y).score(both, y)
    # The eight incidence columns sum to 2, which the intercept says already.
    n, p_small, p_large = len(y), 8, 11
    per_degree = (1 - large) / (n - p_large)
    expected_left = per_degree * (n - p_small)
    return small, max(0.0, (1 - small) - expected_left), large - small


@pytest.mark.parametrize("method", ["ties", "average"])
def test_shares_are_those_of_explicit_least_squares(pairs, method):
    row = _split(pairs, [method]).loc[method]
    effects, beyond, raw = _by_hand(pairs, method)
    assert row["task_effects"] == pytest.approx(effects)
    assert row["metrics_beyond"] == pytest.approx(beyond, abs=1e-12)
    assert row["beyond_raw"] == pytest.approx(raw)
    assert row["n_pairs"] == 28


def test_the_correction_is_the_one_of_adjusted_r2(pairs):
    """Relative to what task effects leave, the share beyond them is 1 - (1 - adj. R²) / (1 - adj. R² of effects)."""
    row = _split(pairs, ["ties"]).loc["ties"]
    n, small = 28, row["task_effects"]
    large = small + row["beyond_raw"]
    adjusted_small, adjusted_large = (1 - (1 - r2) * (n - 1) / (n - p) for r2, p in ((small, 8), (large, 11)))
    relative = 1 - (1 - adjusted_large) / (1 - adjusted_small)
    assert row["metrics_beyond"] == pytest.approx((1 - small) * relative)


def test_shares_sum_to_one_and_find_what_was_planted(pairs):
    found = _split(pairs, ["ties", "average"])
    sums = found[["task_effects", "metrics_beyond", "residual"]].sum(axis=1)
    np.testing.assert_allclose(sums, 1)
    assert (found[["task_effects", "metrics_beyond", "residual"]] >= 0).all(axis=None)
    assert found.loc["ties", "metrics_beyond"] > 0.1
    assert found.loc["ties", "residual"] < 0.1
    assert found.loc["average", "residual"] > 0.5


def test_noise_adds_nothing_on_average_though_every_column_explains_something():
    beyond, raw = [], []
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    for _ in range(60):
        noise = {metric: generator.normal(size=28) for metric in METRICS}
        row = _split(frame.assign(**noise, acc_ties=generator.normal(size=28)), ["ties"]).iloc[0]
        beyond.append(row["metrics_beyond"])
        raw.append(row["beyond_raw"])
    # Three of 27 degrees of freedom are explained by chance.
    assert np.mean(raw) == pytest.approx(3 / 27, abs=0.03)
    assert np.mean(beyond) < 0.5 * np.mean(raw)
    assert min(beyond) == 0


def test_a_metric_that_is_a_sum_of_task_effects_says_nothing_beyond_them(pairs):
    effects = dict(zip(TASKS, np.random.default_rng(1).normal(size=8), strict=True))
    common = pairs["task_a"].map(effects) + pairs["task_b"].map(effects)
    pairs["first"] = common.astype(np.float32)  # as metrics are measured
    found = _split(pairs, ["ties"], ["first"]).loc["ties"]
    assert found["beyond_raw"] == pytest.approx(0, abs=1e-9)
    assert found["metrics_beyond"] == pytest.approx(0, abs=1e-9)


def test_constant_outcomes_and_too_few_pairs_have_no_shares(pairs):
    shares = ["task_effects", "metrics_beyond", "residual", "beyond_raw"]
    assert _split(pairs.assign(acc_ties=0.5), ["ties"])[shares].isna().all(axis=None)
    five = pairs[pairs["task_b"].isin(list("abcde"))].head(8)
    found = _split(five, ["ties"])
    assert found["n_pairs"].tolist() == [8]
    assert found[shares].isna().all(axis=None)


def test_task_effects_explain_of_the_published_outcomes_what_was_published(published):
    methods = ["weight_avg", "arithmetic", "tsv", "ties", "dare"]
    metrics = list(published.columns[2:30])
    outcomes = [f"norm_acc_{method}" for method in methods]
    whole = published[published[metrics + outcomes].notna().all(axis=1)]
    assert len(whole) == 185
    table = PairTable.validate(whole, metrics, outcomes)
    found = variance_split(table, [("norm_acc", method) for method in methods])
    np.testing.assert_allclose(found["task_effects"], [0.813, 0.986, 0.593, 0.997, 0.808], atol=1.5e-3)
    np.testing.assert_allclose(found[["task_effects", "metrics_beyond", "residual"]].sum(axis=1), 1)
