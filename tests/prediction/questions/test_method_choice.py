"""Choosing a method, by hand."""

import pandas as pd
import pytest

from mergeability.prediction.questions.method_choice import method_choice


def _rows(*values):
    columns = ["held_out", "task_a", "task_b", "method", "measured", "predicted", "training_mean"]
    return pd.DataFrame(values, columns=columns).assign(protocol="loto", target="acc", predictor="ridge")


BOTH = [
    # Ties is chosen and best; on average ties.
    ("a", "a", "b", "ties", 0.8, 0.9, 0.7),
    ("a", "a", "b", "tsv", 0.6, 0.5, 0.6),
    # Tsv is chosen, ties is better by 0.2; on average ties.
    ("a", "a", "c", "ties", 0.7, 0.4, 0.7),
    ("a", "a", "c", "tsv", 0.5, 0.5, 0.6),
    # Tsv is chosen and better by 0.3; on average ties.
    ("c", "a", "c", "ties", 0.2, 0.4, 0.7),
    ("c", "a", "c", "tsv", 0.5, 0.6, 0.6),
]


def test_regret_and_hits_by_hand():
    found = method_choice(_rows(*BOTH)).iloc[0]
    assert (found["n_choices"], found["n_methods"]) == (3, 2)
    assert found["regret"] == pytest.approx((0 + 0.2 + 0) / 3)
    assert found["hit_rate"] == pytest.approx(2 / 3)
    assert found["fixed_regret"] == pytest.approx((0 + 0 + 0.3) / 3)
    assert found["fixed_hit_rate"] == pytest.approx(2 / 3)


def test_of_equal_predictions_the_one_with_the_better_training_mean_is_chosen():
    rows = _rows(
        ("a", "a", "b", "ties", 0.8, 0.5, 0.6),
        ("a", "a", "b", "tsv", 0.6, 0.5, 0.7),
    )
    found = method_choice(rows).iloc[0]
    assert found["regret"] == found["fixed_regret"] == pytest.approx(0.2)


def test_methods_with_equal_best_outcomes_are_both_a_hit():
    rows = _rows(("a", "a", "b", "ties", 0.8, 0.1, 0.6), ("a", "a", "b", "tsv", 0.8, 0.5, 0.7))
    assert method_choice(rows).iloc[0]["hit_rate"] == 1


def test_pairs_without_an_outcome_for_every_method_do_not_count():
    more = _rows(*BOTH, ("b", "b", "d", "ties", 0.1, 0.9, 0.7))
    pd.testing.assert_frame_equal(method_choice(more), method_choice(_rows(*BOTH)))


def test_predictors_and_protocols_are_apart_and_one_method_is_no_choice():
    rows = _rows(*BOTH)
    worse = rows.assign(predicted=-rows["predicted"], predictor="upside down")
    one = rows[rows["method"] == "ties"].assign(predictor="one")
    found = method_choice(pd.concat([rows, worse, one, rows.assign(protocol="l2to")], ignore_index=True))
    assert found[["protocol", "predictor"]].to_numpy().tolist() == [
        ["loto", "ridge"],
        ["loto", "upside down"],
        ["l2to", "ridge"],
    ]
    assert found["regret"].tolist() == pytest.approx([0.2 / 3, 0.2 / 3 + 0.5 / 3 - 0.2 / 3 + 0, 0.2 / 3])
    assert len(method_choice(one)) == 0


def test_without_predictions_nothing_is_chosen():
    assert method_choice(_rows()).empty
