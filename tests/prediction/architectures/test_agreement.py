"""Agreement of coefficients and outcomes between methods, architectures and seeds, where the truth is known."""

import numpy as np
import pytest
from planted_pairs import METRICS, SAME, TASKS, cells_of, planted
from scipy.stats import spearmanr

from mergeability.prediction import fingerprints
from mergeability.prediction.architectures import agreement
from mergeability.prediction.architectures.agreement import agreement_table, below_floor, mean_agreement
from mergeability.prediction.architectures.cells import Cells, coefficient_table, correlations

OPPOSITE = {name: -weight for name, weight in SAME.items()}


@pytest.fixture(scope="module")
def cells():
    """Two methods with opposite signs in both architectures; the same signs in every architecture and seed."""
    weights = {"ties": SAME, "tsv": OPPOSITE}
    return cells_of(*(planted(name, seed, weights) for name in ("small", "large") for seed in (0, 1)))


def row(table, kind, group="all", predictor="ridge"):
    same = (table["kind"] == kind) & (table["group"] == group) & (table["predictor"] == predictor)
    return table[same].iloc[0]


def test_kinds_and_groups_are_counted(cells):
    table = agreement_table(cells)
    counts = {(kind, group): n for kind, group, n in table[["kind", "group", "n"]].to_numpy().tolist()}
    assert counts[agreement.METHODS, "all"] == 4
    assert counts[agreement.METHODS, "small"] == 2
    assert counts[agreement.ARCHITECTURES, "all"] == 4
    assert counts[agreement.SEEDS, "large"] == 2
    # For each architecture, two methods in two orders of the seeds.
    assert counts[agreement.ACROSS_METHODS, "small"] == 2
    assert counts[agreement.ACROSS_ARCHITECTURES, "all"] == 4


def test_opposite_methods_disagree_and_architectures_agree(cells):
    table = agreement_table(cells)
    assert row(table, agreement.SEEDS)["sign_agreement"] > 0.8
    assert row(table, agreement.ARCHITECTURES)["sign_agreement"] > 0.8
    assert row(table, agreement.METHODS)["sign_agreement"] < 0.5
    assert row(table, agreement.METHODS)["rho"] < -0.9
    assert row(table, agreement.SEEDS)["rho"] > 0.9
    # The largest three coefficients are the planted ones under both.
    assert row(table, agreement.METHODS)["top5_overlap"] >= 0.6


def test_the_gap_to_the_floor_is_the_difference_of_means(cells):
    gap = below_floor(cells, agreement.ACROSS_METHODS, "sign_agreement", "ridge")
    floor = mean_agreement(cells, agreement.SEEDS, "sign_agreement", "ridge")
    across = mean_agreement(cells, agreement.ACROSS_METHODS, "sign_agreement", "ridge")
    assert gap.value == pytest.approx(floor.value - across.value)
    assert gap.low > 0
    alike = below_floor(cells, agreement.ACROSS_ARCHITECTURES, "sign_agreement", "ridge")
    assert abs(alike.value) < 0.1


def test_shares_are_those_of_fingerprints(cells):
    table = coefficient_table(planted("small", 0, {"ties": SAME, "tsv": OPPOSITE}), METRICS)
    expected = fingerprints(table[table["predictor"] == "ridge"]).iloc[0]
    places = [cells.names.index(("small", 0, method)) for method in ("ties", "tsv")]
    for measure in ("top5_overlap", "sign_agreement"):
        assert cells.agreement(measure, "ridge")[places[0], places[1]] == pytest.approx(expected[measure])


def test_rank_agreement_is_that_of_scipy_and_pairs_may_come_in_any_order():
    first, second = planted("small", 0, noise=0.05), planted("small", 1, noise=0.05)
    mixed = second.pairs.sample(frac=1, random_state=0, ignore_index=True)
    mixed.loc[::2, ["task_a", "task_b"]] = mixed.loc[::2, ["task_b", "task_a"]].to_numpy()
    cells = cells_of(first, type(second)("small", 1, mixed, second.metrics))
    places = [cells.names.index(("small", seed, "ties")) for seed in (0, 1)]
    expected = spearmanr(first.pairs["norm_acc_ties"], second.pairs["norm_acc_ties"])[0]
    assert cells.agreement("rho")[places[0], places[1]] == pytest.approx(expected)
    kept = ~(first.pairs[["task_a", "task_b"]] == "c").any(axis=1)
    expected = spearmanr(first.pairs["norm_acc_ties"][kept], second.pairs["norm_acc_ties"][kept])[0]
    assert cells.agreement("rho", "", "c")[places[0], places[1]] == pytest.approx(expected)


def test_outcomes_of_other_tasks_are_not_compared_and_coefficients_are():
    other = planted("text", 0, tasks=[f"text_{name}" for name in TASKS[:8]])
    cells = cells_of(planted("small", 0), other, metrics=list(SAME))
    between = row(agreement_table(cells), agreement.ARCHITECTURES)
    assert np.isnan(between["rho"])
    assert between["sign_agreement"] == 1, "the three planted metrics"
    assert np.isnan(mean_agreement(cells, agreement.ARCHITECTURES, "rho", same_tasks=True).value)
    apart = mean_agreement(cells, agreement.ARCHITECTURES, "sign_agreement", "ridge", same_tasks=False)
    assert apart.value == pytest.approx(between["sign_agreement"])


def test_one_method_and_seed_has_nothing_to_compare():
    assert agreement_table(cells_of(planted("small", 0, {"ties": SAME}))).empty


def test_a_constant_metric_has_no_correlation():
    features = np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0]])
    found = correlations(features, np.array([0.1, 0.2, 0.4]))
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1)


def test_methods_that_share_the_noise_of_their_models_are_compared_between_seeds():
    """One outcome under two names: alike on the same models, and no more alike than two seeds otherwise."""
    analyses = [planted("small", seed, {"ties": {}}, noise=0.1) for seed in (0, 1, 2)]
    for one in analyses:
        one.pairs["norm_acc_tsv"] = one.pairs["norm_acc_ties"]
    cells = cells_of(*analyses)
    assert mean_agreement(cells, agreement.METHODS, "rho").value == pytest.approx(1)
    assert mean_agreement(cells, agreement.ACROSS_METHODS, "rho").value < 0.5
    assert below_floor(cells, agreement.ACROSS_METHODS, "rho").value == pytest.approx(0)


def test_outcomes_of_fewer_than_three_pairs_have_no_rank_correlation():
    one = planted("small", 0, tasks="abc", noise=0.1)
    cells = Cells.of([one], METRICS, {})
    outcomes = [one.pairs["norm_acc_ties"], one.pairs["norm_acc_tsv"]]
    assert cells.agreement("rho")[0, 1] == pytest.approx(spearmanr(*outcomes)[0])
    assert np.isnan(cells.agreement("rho", without="a")).all()


@pytest.mark.parametrize("outcome", [[0.5] * 4, [0.1, 0.2, np.nan, np.nan], [np.nan] * 4])
def test_a_constant_outcome_or_two_pairs_correlate_with_nothing(outcome):
    features = np.array([[1.0, 4], [2, 3], [3, 1], [5, 2]])
    assert np.isnan(correlations(features, np.array(outcome))).tolist() == [True, True]
