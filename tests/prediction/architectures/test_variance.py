"""The variance split, where task effects, metrics or noise are planted."""

from dataclasses import replace

import numpy as np
import pytest
from planted_pairs import METRICS, TASKS, planted

from mergeability.prediction.architectures.outcomes import outcome_table
from mergeability.prediction.architectures.variance import repeated_share, repeated_shares, variance_shares

NONE = {"ties": {}, "tsv": {}}
TWO = {name: {"one": 1.0, "two": -1.0} for name in ("ties", "tsv")}


def test_additive_outcomes_are_task_effects():
    table = variance_shares(planted("small", 0, NONE, effects=0.1, noise=0.0))
    assert table["task_effects"].tolist() == pytest.approx([1, 1])
    assert table["residual"].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert table["metrics_beyond"].fillna(0).tolist() == pytest.approx([0, 0], abs=1e-9)


def test_metrics_beyond_task_effects_are_found_and_validated():
    table = variance_shares(planted("small", 0, TWO, effects=0.1, noise=0.0))
    unexplained = 1 - table["task_effects"]
    assert (table["metrics_beyond"] > 0.8 * unexplained).all()
    assert table[["task_effects", "metrics_beyond", "residual"]].sum(axis=1).tolist() == pytest.approx([1, 1])


def test_task_effects_are_those_of_numpy():
    analysis = planted("small", 0, TWO, effects=0.1)
    pairs = analysis.pairs
    marks = np.array(
        [[1.0, *(float(task in pair) for task in TASKS)] for pair in pairs[["task_a", "task_b"]].to_numpy()]
    )
    y = pairs["norm_acc_ties"].to_numpy()
    left = y - marks @ np.linalg.lstsq(marks, y, rcond=None)[0]
    expected = 1 - (left @ left) / ((y - y.mean()) @ (y - y.mean()))
    assert variance_shares(analysis)["task_effects"].iloc[0] == pytest.approx(expected)


def test_metrics_that_predict_nothing_have_no_share():
    tables = [variance_shares(planted("small", 0, NONE, noise=0.1, draw=draw)) for draw in range(4)]
    assert np.mean([table["metrics_beyond"] for table in tables]) < 0.05
    assert np.min([table["residual"] for table in tables]) > 0.5


def test_more_metrics_than_pairs_are_no_obstacle():
    tasks = TASKS[:5]
    names = [*METRICS, "m8", "m9", "m10", "m11"]
    table = variance_shares(planted("small", 0, TWO, tasks=tasks, names=names, effects=0.1))
    assert table["task_effects"].notna().all()


def test_a_constant_outcome_has_no_shares():
    table = variance_shares(planted("small", 0, NONE, noise=0.0))
    assert table[["task_effects", "metrics_beyond", "residual"]].isna().all(axis=None)


def test_what_repeats_over_seeds_is_told_from_noise():
    """Variances of the single tasks, the combination and the noise of about 2 · 0.01, 0.01 and 0.01."""
    tasks = [f"task{place}" for place in range(30)]
    seeds = [planted("small", seed, NONE, tasks, 0.1, 0.1, 0.1) for seed in (0, 1, 2)]
    shares = repeated_shares(seeds).set_index("method").loc["all"]
    assert shares["task"] == pytest.approx(0.5, abs=0.15)
    assert shares["partner"] == pytest.approx(0.25, abs=0.1)
    assert shares["changes"] == pytest.approx(0.25, abs=0.1)
    assert shares["partner_low"] > 0.1


def test_noise_repeats_nothing_and_additive_outcomes_have_no_partner():
    noise = [planted("small", seed, NONE, noise=0.1) for seed in (0, 1, 2)]
    found = repeated_share(noise, ["ties", "tsv"], "partner")
    assert found.low < 0 < found.high
    additive = [planted("small", seed, NONE, effects=0.1, noise=0.001) for seed in (0, 1, 2)]
    assert repeated_share(additive, ["ties", "tsv"], "partner").high < 0.05
    assert repeated_share(additive, ["ties", "tsv"], "task").value == pytest.approx(1, abs=0.01)


def test_one_seed_repeats_nothing_that_is_known():
    shares = repeated_shares([planted("small", 0)])
    assert shares[["task", "partner"]].isna().all(axis=None)


def test_mean_outcomes_are_over_pairs_and_seeds():
    analyses = [planted(name, seed) for name in ("small", "large") for seed in (0, 1)]
    table = outcome_table(analyses).set_index(["architecture", "method"])
    expected = [planted("small", seed).pairs["norm_acc_ties"] for seed in (0, 1)]
    assert table.loc[("small", "ties"), "norm_acc"] == pytest.approx(np.mean(expected))
    assert table.loc[("small", "ties"), "worst"] == pytest.approx(np.min(expected))
    assert table.loc[("small", "ties"), "seeds"] == 2


@pytest.mark.parametrize(
    "options", [{"noise": 0.0}, {"tasks": "abc", "effects": 0.1, "noise": 0.1}, {"tasks": "ab", "noise": 0.1}]
)
def test_constant_outcomes_or_too_few_pairs_repeat_nothing_that_is_known(options):
    seeds = [planted("small", seed, NONE, **options) for seed in (0, 1)]
    for part in ("task", "partner"):
        assert np.isnan(repeated_share(seeds, ["ties", "tsv"], part).value)


def test_without_metrics_all_beyond_task_effects_is_rest():
    with_metrics = planted("small", 0, TWO, effects=0.1)
    without = replace(with_metrics, pairs=with_metrics.pairs.drop(columns=list(METRICS)), metrics=())
    table = variance_shares(without)
    assert table["task_effects"].tolist() == pytest.approx(
        variance_shares(with_metrics)["task_effects"].tolist()
    )
    assert table["metrics_beyond"].isna().all()
    assert table["residual"].tolist() == pytest.approx((1 - table["task_effects"]).tolist())
