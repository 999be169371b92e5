"""Predictions of the pairs that a budget left out, and what is said of them."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction.pair_choice import choose_pairs
from mergeability.prediction.predictors import moments
from mergeability.prediction.predictors.additive import Additive
from mergeability.prediction.predictors.moments import Moments
from mergeability.prediction.unevaluated import FEWEST, predict_unevaluated

METRICS = ["m0", "m1"]


def measured(of_tasks, of_metrics, noise=0.0, tasks=10, count=25, seed=0):
    """Make a table of all pairs with outcomes of some, and return all outcomes beside it."""
    generator = np.random.default_rng(seed)
    ends = np.array(list(itertools.combinations(range(tasks), 2)))
    metrics = generator.normal(size=(len(ends), 2))
    outcome = (
        0.7 + of_tasks * generator.normal(size=tasks)[ends].sum(axis=1) + metrics @ [of_metrics, -of_metrics]
    )
    outcome = outcome + noise * generator.normal(size=len(ends))
    names = np.array([f"t{i:02}" for i in range(tasks)])[ends]
    frame = pd.DataFrame(
        {"task_a": names[:, 0], "task_b": names[:, 1], "m0": metrics[:, 0], "m1": metrics[:, 1]}
    )
    rows = choose_pairs(frame, METRICS, count)
    known = np.isin(np.arange(len(ends)), rows)
    return frame.assign(norm_acc_ta=np.where(known, outcome, np.nan)), outcome, known


@pytest.mark.parametrize(
    ("of_tasks", "of_metrics", "predictors"),
    [
        (0.05, 0.0, {"additive", "dyadic"}),
        (0.0, 0.05, {"ridge", "ridge with task effects"}),
        (0.05, 0.05, {"dyadic", "ridge with task effects"}),
    ],
)
def test_whatever_the_outcome_rests_on_is_found_and_predicts_the_others(of_tasks, of_metrics, predictors):
    frame, outcome, known = measured(of_tasks, of_metrics, noise=0.002)
    found = predict_unevaluated(frame, METRICS, ["ta"])
    [accuracy] = found.accuracy.to_dict("records")
    assert accuracy["predictor"] in predictors
    assert (accuracy["n_measured"], accuracy["n_predicted"]) == (25, 20)
    predicted = found.predictions
    assert list(map(tuple, predicted[["task_a", "task_b"]].to_numpy())) == list(
        map(tuple, frame.loc[~known, ["task_a", "task_b"]].to_numpy())
    )
    off = np.abs(predicted["predicted_norm_acc_ta"] - outcome[~known])
    spread = np.abs(outcome[~known] - outcome[known].mean()).mean()
    assert off.mean() < 0.3 * spread
    low, high = predicted["predicted_low_norm_acc_ta"], predicted["predicted_high_norm_acc_ta"]
    assert ((low <= outcome[~known]) & (outcome[~known] <= high)).mean() >= 0.75
    assert accuracy["mae"] < accuracy["mae_of_mean"]
    assert accuracy["level"] == 0.9


def test_intervals_hold_about_the_share_they_promise():
    inside = []
    for seed in range(6):
        frame, outcome, known = measured(0.03, 0.01, noise=0.02, tasks=12, count=36, seed=seed)
        found = predict_unevaluated(frame, METRICS, ["ta"]).predictions
        low, high = found["predicted_low_norm_acc_ta"], found["predicted_high_norm_acc_ta"]
        inside.append(((low <= outcome[~known]) & (outcome[~known] <= high)).mean())
    assert 0.82 <= np.mean(inside) <= 0.98


def test_no_measured_number_is_repeated_and_none_is_changed():
    frame, _, known = measured(0.05, 0.0)
    before = frame.copy()
    found = predict_unevaluated(frame, METRICS, ["ta"])
    pd.testing.assert_frame_equal(frame, before)
    outcomes = [name for name in found.predictions.columns if not name.startswith("task_")]
    assert all(name.startswith("predicted_") for name in outcomes)
    assert len(found.predictions) == (~known).sum()


def test_outcomes_of_other_pairs_are_fitted_apart():
    frame, outcome, _ = measured(0.05, 0.0)
    rows = frame["norm_acc_ta"].notna().to_numpy().nonzero()[0]
    frame["norm_acc_ties"] = frame["norm_acc_ta"]
    frame.loc[rows[:6], "norm_acc_ties"] = np.nan
    frame["acc_ties"] = np.nan
    frame.loc[rows[:2], "acc_ties"] = outcome[rows[:2]]
    found = predict_unevaluated(frame, METRICS, ["ta", "ties"])
    assert found.accuracy.set_index("method")["n_measured"].to_dict() == {"ta": 25, "ties": 19}
    assert any("acc_ties" in note for note in found.notes)


def test_what_cannot_be_predicted_has_no_number_and_is_counted():
    frame, _, _ = measured(0.05, 0.05)
    missing = frame.index[frame["norm_acc_ta"].isna()]
    frame.loc[missing[:3], "m0"] = np.nan
    found = predict_unevaluated(frame, METRICS, ["ta"])
    assert found.predictions["predicted_norm_acc_ta"].isna().tolist() == [True] * 3 + [False] * (
        len(missing) - 3
    )
    assert found.notes == (f"3 of {len(missing)} pairs were not predicted because a metric is undefined.",)
    frame["norm_acc_ta"] = frame["norm_acc_ta"].where(frame["norm_acc_ta"].notna().cumsum() < FEWEST)
    few = predict_unevaluated(frame, METRICS, ["ta"])
    assert few.predictions.empty
    assert f"{FEWEST - 1} evaluated pairs are fewer than {FEWEST}" in few.notes[0]


def test_without_metrics_task_effects_predict():
    frame, outcome, known = measured(0.05, 0.0)
    found = predict_unevaluated(frame.assign(m0=np.nan, m1=np.nan), METRICS, ["ta"])
    assert found.accuracy["predictor"].tolist() == ["additive"]
    assert np.corrcoef(found.predictions["predicted_norm_acc_ta"], outcome[~known])[0, 1] > 0.99


def test_sums_of_very_many_columns_are_added_fold_by_fold_and_come_out_alike(monkeypatch):
    generator = np.random.default_rng(0)
    columns, outcomes = generator.normal(size=(40, 6)) + 3, generator.normal(size=(40, 2))
    training = generator.random((5, 40)) < 0.7
    usual = Moments(columns, outcomes, training)
    before = Additive(strength=1).fit(columns, outcomes[:, 0]).coef_
    monkeypatch.setattr(moments, "_MOST_PRODUCTS", 0)
    found = Moments(columns, outcomes, training)
    for name in ("means", "outcome_means", "gram", "cross"):
        np.testing.assert_allclose(getattr(found, name), getattr(usual, name), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(Additive(strength=1).fit(columns, outcomes[:, 0]).coef_, before, rtol=1e-10)
