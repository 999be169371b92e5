"""Verdicts on the claims, from tables in which each claim is planted to hold or not."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_pairs import FEW, METRICS, SAME, no_predictions, only_across, planted

from mergeability.prediction.architectures.analyses import Analysis, common_metrics
from mergeability.prediction.architectures.cells import coefficient_table
from mergeability.prediction.architectures.claims import (
    CLAIMS,
    CONFIRMED,
    NOT_MEASURED,
    REFUTED,
    UNDECIDED,
    claim_table,
    opposite,
    shown,
    verdict,
)
from mergeability.prediction.architectures.findings import Computed, findings
from mergeability.prediction.architectures.resampling import Estimate
from mergeability.prediction.architectures.signs import stable_by_chance
from mergeability.prediction.architectures.trainings import Penalised, penalty_table, set_table
from mergeability.prediction.architectures.transfer import transferred
from mergeability.prediction.architectures.variance import variance_shares

COMPUTED = Computed(
    coefficient_table, variance_shares, transferred, lambda cells: stable_by_chance(cells, permutations=5)
)
# Without what a test's claims do not rest on.
ACROSS = replace(COMPUTED, transferred=only_across)
NO_TRANSFER = replace(COMPUTED, transferred=no_predictions)
METHOD = "Mergeability depends on the merge method."
PARTNER = "Mergeability depends on the partner, not on the model alone."
DRIVERS = "Each method has success drivers of its own."
GRADIENT = "Gradient alignment is a prerequisite under every method."
SUBSPACE = "Subspace overlap is a prerequisite under every method."
NEARER = "Fine-tuning that brings gradients together makes better merges."
SEVERAL = "An objective that aims at several signals makes better merges."
ALIKE = "Success drivers are the same in other architectures, on the same tasks."
CARRIED = "The published metrics, fitted on one architecture, predict merges of another on the same suite."
SETS = "Pairs predict merges of more than two models."
OPPOSITE = {name: -weight for name, weight in SAME.items()}


def found_in(analyses, computed=COMPUTED):
    return findings(analyses, common_metrics(analyses), computed, {})


def decided(analyses, computed=COMPUTED) -> pd.DataFrame:
    return claim_table(found_in(analyses, computed)).set_index("claim")


def decision(claim, found):
    """Decide one claim only."""
    return next(one for one in CLAIMS if one.text == claim).decide(found)


def grid(weights=None, names=("small", "large"), seeds=(0, 1, 2), metrics=METRICS, **options):
    return [planted(name, seed, weights, FEW, names=metrics, **options) for name in names for seed in seeds]


@pytest.fixture(scope="module")
def differing():
    """Methods that need opposite metrics, alike in all architectures."""
    return decided(grid({"ties": SAME, "tsv": OPPOSITE}), ACROSS)


@pytest.fixture(scope="module")
def alike():
    """Two methods with the same additive outcomes, and no metric that matters."""
    weights = {"ties": {}, "tsv": {}}
    return decided(grid(weights, names=("small",), effects=0.1, noise=0.003), NO_TRANSFER)


def test_every_claim_has_one_row_with_a_verdict_a_figure_and_a_rule(differing):
    assert list(differing.index) == [claim.text for claim in CLAIMS]
    assert set(differing["verdict"]) <= {CONFIRMED, REFUTED, UNDECIDED}
    assert (differing["figure"].str.len() > 0).all()
    assert (differing["rule"].str.len() > 0).all()


@pytest.mark.parametrize("claim", [METHOD, DRIVERS, ALIKE, CARRIED])
def test_claims_that_are_planted_are_confirmed(differing, claim):
    assert differing.loc[claim, "verdict"] == CONFIRMED, differing.loc[claim, "figure"]
    assert differing.loc[claim, "low"] <= differing.loc[claim, "value"] <= differing.loc[claim, "high"]


@pytest.mark.parametrize("claim", [METHOD, PARTNER])
def test_claims_that_are_planted_not_to_hold_are_refuted(alike, claim):
    assert alike.loc[claim, "verdict"] == REFUTED, alike.loc[claim, "figure"]


def test_pairs_with_an_effect_that_repeats_confirm_that_the_partner_matters():
    weights = {"ties": {}, "tsv": {}}
    table = decided(grid(weights, names=("small",), effects=0.02, interaction=0.1), NO_TRANSFER)
    assert table.loc[PARTNER, "verdict"] == CONFIRMED


def test_architectures_with_opposite_coefficients_refute_that_drivers_carry_over():
    small = grid(names=("small",), seeds=(0, 1))
    turned = dict.fromkeys(("ties", "tsv"), OPPOSITE)
    table = decided([*small, *grid(turned, names=("large",), seeds=(0, 1))], ACROSS)
    assert table.loc[CARRIED, "verdict"] == REFUTED
    assert table.loc[ALIKE, "verdict"] == REFUTED


def test_prerequisites_are_confirmed_in_the_expected_direction_and_refuted_in_the_other():
    names = ("encoder_gradient_l2_distance", "subspace_overlap")
    weights = {method: dict.fromkeys(names, -1.0) for method in ("ties", "tsv")}
    table = decided(grid(weights, ("small",), (0, 1), metrics=names), NO_TRANSFER)
    assert table.loc[GRADIENT, "verdict"] == CONFIRMED
    assert "encoder_gradient_l2_distance in small" in table.loc[GRADIENT, "figure"]
    assert table.loc[SUBSPACE, "verdict"] == REFUTED


def test_one_seed_decides_nothing_about_methods_and_says_so():
    table = decided(grid(seeds=(0,)), ACROSS)
    for claim in (METHOD, PARTNER, DRIVERS):
        assert table.loc[claim, "verdict"] == UNDECIDED
        assert "one seed" in table.loc[claim, "figure"]
    assert "one seed" in table.loc[ALIKE, "figure"]
    assert table.loc[CARRIED, "verdict"] == CONFIRMED, "an interval over tasks is enough"


def test_one_architecture_says_nothing_about_others():
    table = decided(grid(names=("small",), seeds=(0, 1)))
    for claim in (ALIKE, CARRIED):
        assert table.loc[claim, "verdict"] == UNDECIDED
        assert NOT_MEASURED in table.loc[claim, "figure"]
        assert "experiment=architectures" in table.loc[claim, "command"]


def test_what_these_runs_lack_is_named_with_its_command(differing):
    for claim, part in ((NEARER, "reg=grad_magnitude"), (SEVERAL, "reg=mergeability"), (SETS, "arity=")):
        assert differing.loc[claim, "figure"].startswith(NOT_MEASURED)
        assert part in differing.loc[claim, "command"]
    assert differing.loc[METHOD, "command"] == ""


def _trained(plain: Analysis, gain: float, gradient: float) -> Analysis:
    changed = plain.pairs.copy()
    outcomes = [name for name in changed if "acc_" in name]
    changed[outcomes] += gain + 0.001 * plain.seed
    changed["encoder_gradient_l2_distance"] = plain.pairs["encoder_gradient_l2_distance"] * gradient
    return Analysis(plain.architecture, plain.seed, changed, plain.metrics)


@pytest.fixture(scope="module")
def plain():
    """Three seeds whose gradients have a distance."""
    return [
        Analysis(
            one.architecture,
            one.seed,
            one.pairs.assign(encoder_gradient_l2_distance=2.0 + one.pairs["one"].abs()),
            METRICS,
        )
        for one in grid(names=("small",))
    ]


@pytest.fixture(scope="module")
def found(plain):
    return found_in(plain, NO_TRANSFER)


def with_penalty(found, plain, name, gain, gradient):
    penalised = [Penalised(name, 0.01, _trained(one, gain, gradient)) for one in plain]
    return partial(decision, found=replace(found, penalties=penalty_table(plain, penalised)))


@pytest.mark.parametrize(("gain", "expected"), [(0.05, CONFIRMED), (-0.05, REFUTED)])
def test_penalties_that_bring_gradients_together_decide(found, plain, gain, expected):
    decide = with_penalty(found, plain, "grad_magnitude", gain, 0.8)
    assert decide(NEARER).verdict == expected
    assert decide(NEARER).estimate.value == pytest.approx(gain + 0.001)
    assert NOT_MEASURED in decide(SEVERAL).figure
    assert with_penalty(found, plain, "mergeability", gain, 0.8)(SEVERAL).verdict == expected


def test_penalties_that_leave_gradients_apart_do_not_count(found, plain):
    assert with_penalty(found, plain, "l2_to_init", 0.05, 1.2)(NEARER).verdict == UNDECIDED


def test_changes_are_paired_by_pair_and_seed(plain):
    table = penalty_table(plain, [Penalised("p", 0.1, _trained(one, 0.05, 0.8)) for one in plain[:2]])
    row = table.iloc[0]
    assert row["acc"] == pytest.approx(np.mean([0.05, 0.051]))
    assert row["norm_acc"] == pytest.approx(row["acc"])
    assert row["gradient"] == pytest.approx(-0.2)
    assert row["seeds"] == 2
    assert penalty_table(plain[1:], [Penalised("p", 0.1, plain[0])]).empty, "no plain training of that seed"


def _sets(analysis: Analysis, sign: float) -> pd.DataFrame:
    """The outcome of three models is the mean of their pairs, or falls with it."""
    triples = list(combinations(FEW, 3))
    columns = analysis.pairs[["task_a", "task_b", "norm_acc_ties"]].to_numpy().tolist()
    pairs = {frozenset((a, b)): outcome for a, b, outcome in columns}
    means = np.array([np.mean([pairs[frozenset(two)] for two in combinations(one, 2)]) for one in triples])
    return pd.DataFrame(
        {"tasks": ["+".join(one) for one in triples], "arity": 3, "norm_acc_ties": sign * means}
    )


@pytest.mark.parametrize(("sign", "expected"), [(1.0, CONFIRMED), (-1.0, REFUTED)])
def test_merges_of_three_models_are_compared_with_their_pairs(found, plain, sign, expected):
    table = set_table(plain, {("small", one.seed): _sets(one, sign) for one in plain})
    rows = table.set_index("method")
    assert rows.loc["ties", "rho"] == pytest.approx(sign)
    assert rows.loc["all", ["arity", "n_sets", "left_out", "seeds"]].tolist() == [3, 35, 0, 3]
    assert decision(SETS, replace(found, sets=table)).verdict == expected


def test_sets_whose_pairs_were_not_merged_are_counted(found, plain):
    sets = {("small", one.seed): _sets(one, 1.0) for one in plain}
    few = [replace(one, pairs=one.pairs[one.pairs["task_a"] != FEW[0]]) for one in plain]
    rows = set_table(few, sets).set_index("method")
    # Of the 35 triples of seven tasks, the first task is in 15.
    assert rows.loc["all", ["n_sets", "left_out"]].tolist() == [20, 15]
    none = set_table([replace(one, pairs=one.pairs[:0]) for one in plain], sets)
    assert none[["n_sets", "left_out"]].drop_duplicates().to_numpy().tolist() == [[0, 35]]
    decided = decision(SETS, replace(found, sets=none))
    assert (decided.verdict, decided.figure) == (UNDECIDED, NOT_MEASURED)


def test_the_documentation_has_a_row_for_every_claim():
    page = (Path(__file__).parents[3] / "docs/architectures.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    claims = [claim.text for claim in CLAIMS]
    assert [row for row in rows if row in claims] == claims


def test_verdicts_follow_the_rule():
    assert verdict(Estimate(0.15, 0.01, 0.3), 0.1) == CONFIRMED
    assert verdict(Estimate(0.05, 0.01, 0.3), 0.1) == UNDECIDED, "too small to matter, and perhaps not"
    assert verdict(Estimate(0.05, 0.01, 0.09), 0.1) == REFUTED
    assert verdict(Estimate(0.5), 0.1) == UNDECIDED, "without an interval"
    assert [opposite(one) for one in (CONFIRMED, REFUTED, UNDECIDED)] == [REFUTED, CONFIRMED, UNDECIDED]


def test_a_value_is_written_with_what_is_known_of_it():
    assert shown(Estimate(float("nan"))) == "unknown"
    assert shown(Estimate(0.214)) == "0.21"
    assert shown(Estimate(0.214, 0.1, 0.32)) == "0.21 (0.10 to 0.32)"
