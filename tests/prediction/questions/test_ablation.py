"""Refits without categories: equal to evaluations of the shorter list of metrics."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from mergeability.prediction import (
    LeaveOneTaskOut,
    LeaveTwoTasksOut,
    PairTable,
    Ridge,
    evaluate_predictors,
)
from mergeability.prediction.questions.ablation import category_ablation

METRICS = ["first", "second", "third"]
OUTCOMES = [("norm_acc", "ties"), ("norm_acc", "average")]
PROTOCOLS = [LeaveOneTaskOut(), LeaveTwoTasksOut()]


def _table(frame, metrics=METRICS):
    return PairTable.validate(frame, metrics, ["norm_acc_ties", "norm_acc_average"])


def _scores(frame, metrics, model, protocols):
    """Evaluate a list of metrics; return a function from a row to its expected score."""
    records = evaluate_predictors(
        frame, metrics, {"it": model}, ["ties", "average"], ["norm_acc"], protocols
    ).records

    def expected(row):
        (record,) = [
            r for r in records if all(r[k] == getattr(row, k) for k in ("protocol", "target", "method"))
        ]
        value = record[row.score]
        return pytest.approx(np.nan if value is None else value, abs=1e-12, nan_ok=True)

    return expected


@pytest.mark.parametrize(
    ("model", "protocols"),
    [(None, PROTOCOLS), (LinearRegression(), PROTOCOLS[:1])],
    ids=["ridge", "ols"],
)
def test_each_row_is_an_evaluation_of_the_shorter_list(table, model, protocols):
    categories = {"most": ["first", "second"], "rest": ["third", "never measured"], "empty": ["other"]}
    found = category_ablation(_table(table), categories, OUTCOMES, protocols, model)
    assert len(found) == 2 * 2 * len(protocols)
    judge = Ridge() if model is None else model
    whole, most, rest = (
        _scores(table, list_, judge, protocols) for list_ in (METRICS, ["first", "second"], ["third"])
    )
    lists = {"most": (rest, most, 2), "rest": (most, rest, 1)}
    assert found.query("protocol == 'loto'")["whole"].notna().all()
    for row in found.itertuples():
        without, alone, count = lists[row.category]
        assert row.n_metrics == count
        assert row.score == ("r_mean" if row.protocol == "loto" else "r_beyond_mean")
        assert row.whole == whole(row)
        assert row.without == without(row)
        assert row.alone == alone(row)
        assert row.delta == pytest.approx(row.without - row.whole, nan_ok=True)


def test_every_refit_uses_the_pairs_that_have_all_metrics(table):
    table.loc[3, "third"] = np.nan
    found = category_ablation(
        _table(table), {"most": ["first", "second"], "rest": ["third"]}, OUTCOMES, PROTOCOLS[:1]
    )
    whole = table.drop(index=3)
    alone = {
        "most": _scores(whole, ["first", "second"], Ridge(), PROTOCOLS[:1]),
        "rest": _scores(whole, ["third"], Ridge(), PROTOCOLS[:1]),
    }
    for row in found.itertuples():
        assert row.alone == alone[row.category](row)


def test_the_category_of_all_metrics_leaves_nothing_to_refit(table):
    found = category_ablation(_table(table), {"all": METRICS}, OUTCOMES, PROTOCOLS[:1])
    assert found["without"].isna().all()
    assert found["delta"].isna().all()
    np.testing.assert_array_equal(found["alone"], found["whole"])


def test_what_the_outcome_listens_to_is_missed(table):
    categories = {"heard": ["first", "second"], "noise": ["third"]}
    found = category_ablation(_table(table), categories, [("norm_acc", "ties")], [LeaveOneTaskOut()])
    delta = found.set_index("category")["delta"]
    assert delta["heard"] < -0.3
    assert abs(delta["noise"]) < 0.1
