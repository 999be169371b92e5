"""Fits on one architecture that predict another: against plain loops, and where coefficients are the same or not."""

import numpy as np
import pytest
from planted_pairs import FEW, METRICS, SAME, TASKS, only_across, planted

from mergeability.prediction import LeaveTwoTasksOut, Ridge, evaluate_predictors
from mergeability.prediction.architectures import transfer
from mergeability.prediction.architectures.analyses import Analysis
from mergeability.prediction.architectures.transfer import (
    OTHER_ARCHITECTURE,
    OTHER_SEED,
    WITHIN,
    AcrossTables,
    Transfers,
    named,
    transferred,
)

OPPOSITE = {name: {metric: -weight for metric, weight in SAME.items()} for name in ("ties", "tsv")}


def means(table, models, predictor):
    rows = table[(table["models"] == models) & (table["predictor"] == predictor)]
    return {(a, b): r for a, b, r in rows[["fitted_on", "predicts", "r"]].to_numpy().tolist()}


def test_the_same_coefficients_carry_over_and_opposite_ones_turn_the_order():
    small = planted("small", 0, tasks=TASKS[:8])
    same = Transfers.of([small, planted("large", 0, tasks=TASKS[:8], draw=1)], only_across).table()
    assert min(means(same, OTHER_ARCHITECTURE, "ridge").values()) > 0.8
    turned = Transfers.of([small, planted("large", 0, OPPOSITE, TASKS[:8], draw=1)]).table()
    assert max(means(turned, OTHER_ARCHITECTURE, "ridge").values()) < -0.8
    assert min(means(turned, WITHIN, "ridge").values()) > 0.8


def test_permuted_metrics_carry_nothing_over():
    other = planted("large", 0, draw=1)
    mixed = other.pairs.assign(
        **{name: np.random.default_rng(5).permutation(other.pairs[name]) for name in METRICS}
    )
    table = Transfers.of([planted("small", 0), Analysis("large", 0, mixed, METRICS)], only_across).table()
    assert abs(means(table, OTHER_ARCHITECTURE, "ridge")["small", "large"]) < 0.4


def test_another_unit_of_the_metrics_carries_over_only_if_they_are_scaled():
    """With the same outcomes and metrics ten times as large, an error of ten times as much."""
    tables = [planted("small", 0, noise=0.02), planted("large", 0, scale=10.0, draw=1, noise=0.02)]
    found = transferred(*tables)
    error = {
        name: float((own["predicted"] - own["measured"]).abs().mean())
        for name, own in found.groupby("predictor", sort=False)
    }
    assert error["ridge"] > 3 * error["ridge_scaled"]


def test_a_fit_never_knows_a_task_of_the_pair_that_it_predicts():
    """The training mean, of the pairs without either task, by a plain loop."""
    small, large = planted("small", 0, tasks=FEW, effects=0.1), planted("large", 0, tasks=FEW, draw=1)
    found = transferred(small, large)
    rows = found[(found["predictor"] == "ridge") & (found["method"] == "ties")]
    assert len(rows) == len(large.pairs)
    for _, row in rows.iterrows():
        apart = ~small.pairs[["task_a", "task_b"]].isin([row["task_a"], row["task_b"]]).any(axis=1)
        assert row["training_mean"] == pytest.approx(small.pairs.loc[apart, "norm_acc_ties"].mean())


def test_other_tasks_are_predicted_by_one_fit_on_all_pairs():
    text = planted("text", 0, tasks=[f"text_{name}" for name in TASKS[:6]], draw=2)
    small = planted("small", 0, tasks=FEW)
    rows = transferred(small, text)
    means_of_training = rows.loc[rows["method"] == "ties", "training_mean"]
    assert means_of_training.to_numpy() == pytest.approx(small.pairs["norm_acc_ties"].mean())
    assert (
        means(Transfers.of([small, text], only_across).table(), OTHER_ARCHITECTURE, "ridge")["small", "text"]
        > 0.8
    )


def test_within_the_same_models_it_is_leaving_two_tasks_out():
    analysis = planted("small", 0, tasks=FEW, effects=0.02, noise=0.02)
    expected = evaluate_predictors(
        analysis.pairs, METRICS, {"ridge": Ridge()}, ["ties"], ["norm_acc"], [LeaveTwoTasksOut()]
    )
    table = Transfers.of(
        [Analysis("small", 0, analysis.pairs.drop(columns=["norm_acc_tsv", "acc_tsv"]), METRICS)]
    )
    found = means(table.table(), WITHIN, "ridge")["small", "small"]
    assert found == pytest.approx(expected.records[0]["r_beyond_mean"])


def test_seeds_of_one_architecture_predict_each_other():
    table = Transfers.of([planted("small", seed, tasks=FEW, noise=0.02) for seed in (0, 1)]).table()
    assert set(table["models"]) == {WITHIN, OTHER_SEED}
    row = table[(table["models"] == OTHER_SEED) & (table["predictor"] == "ridge")].iloc[0]
    assert (row["seeds"], row["n_pairs"]) == (2, 21)
    assert row["r"] > 0.5


def test_predictors_with_columns_of_their_own_are_transferred_where_both_have_them():
    generator = np.random.default_rng(3)
    tables = []
    for name in ("small", "large"):
        pairs = planted(name, 0, tasks=FEW, noise=0.05).pairs
        noise = 0.001 * generator.normal(size=(2, len(pairs)))
        pairs = pairs.assign(base_agreement=pairs["norm_acc_ties"] + noise[0], ensemble_overlap=noise[1])
        for method in ("ties", "tsv"):
            pairs[f"probe_overlap_{method}"] = pairs[f"norm_acc_{method}"] - 0.03
        tables.append(Analysis(name, 0, pairs, METRICS))
    table = Transfers.of(tables, only_across).table()
    probe = table[(table["models"] == OTHER_ARCHITECTURE) & (table["predictor"] == "probe")].iloc[0]
    assert probe["bias"] == pytest.approx(-0.03)
    assert probe["r"] == pytest.approx(1)
    assert "known" in set(table["predictor"]), "by base_agreement, as there is no zero_shot_ratio"
    assert means(table, OTHER_ARCHITECTURE, "functional")["small", "large"] > 0.3
    without = transferred(tables[0], planted("large", 0, tasks=FEW))
    assert set(without["predictor"]) == {"ridge", transfer.SCALED}


def test_an_unknown_outcome_is_left_out():
    other = planted("large", 0, tasks=FEW, draw=1)
    other.pairs.loc[3, "norm_acc_ties"] = np.nan
    found = transferred(planted("small", 0, tasks=FEW), other)
    assert (found[found["predictor"] == "ridge"].groupby("method").size() == [20, 21]).all()


def test_a_new_pair_that_shares_a_task_with_every_fitted_pair_is_not_predicted():
    fitted, new = [("a", "b"), ("a", "c")], [("a", "x"), ("x", "y"), ("b", "x")]
    pairs = [*((named(0, a), named(0, b)) for a, b in fitted), *((named(1, a), named(1, b)) for a, b in new)]
    folds = [(one.training.tolist(), one.validation.tolist()) for one in AcrossTables().folds(pairs)]
    assert folds == [([0, 1], [3]), ([1], [4])]


def test_without_a_common_metric_or_method_nothing_is_predicted():
    one = planted("small", 0, {"ties": {}}, FEW, names=("one", "two"))
    for other in (
        planted("large", 0, {"ties": {}}, FEW, names=("three",)),
        planted("large", 0, {"tsv": {}}, FEW, names=("one", "two")),
    ):
        found = transferred(one, other)
        assert found.empty
        assert {"predictor", "method", "measured", "predicted"} <= set(found.columns)
