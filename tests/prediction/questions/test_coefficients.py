"""Coefficients over folds and metrics of one sign, by hand."""

import pandas as pd
import pytest

from mergeability.prediction.questions.coefficients import coefficient_table, stable_metrics


def _coefficients(method, **by_metric):
    rows = [
        ("acc", "ridge", method, f"task {fold}", metric, value)
        for metric, values in by_metric.items()
        for fold, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["target", "predictor", "method", "held_out", "metric", "coefficient"])


@pytest.fixture
def both():
    first = _coefficients(
        "ties",
        cosine=[1.0, 3.0, 2.0, 2.0, 2.0],
        norm=[-1.0, 0.0, -1.0, -1.0, -2.0],
        rank=[1.0, 1.0, 1.0, 1.0, 1.0],
        angle=[0.0, 0.0, 0.0, 0.0, 5.0],
    )
    second = _coefficients(
        "tsv",
        cosine=[0.5] * 5,
        norm=[-2.0] * 5,
        rank=[-1.0] * 5,
        angle=[0.5] * 5,
    )
    effects = _coefficients("ties", **{"task=a": [9.0] * 5})
    return pd.concat([first, effects, second], ignore_index=True)


def test_the_table_by_hand(both):
    table = coefficient_table(both).set_index(["method", "metric"])
    assert len(table) == 8, "task effects are no metrics"
    cosine = table.loc[("ties", "cosine")]
    assert cosine["mean"] == 2
    assert cosine["std"] == pytest.approx((2 / 5) ** 0.5)
    assert cosine["selected"] == 1
    # |means| of ties: 2, 1, 1, 1.
    assert cosine["contribution"] == pytest.approx(0.4)
    assert table.loc[("ties", "norm"), "selected"] == pytest.approx(0.8)
    assert table.loc[("ties", "angle"), "selected"] == pytest.approx(0.2)
    assert table.loc[("tsv", "norm"), "contribution"] == pytest.approx(0.5)
    assert table.groupby("method")["contribution"].sum().tolist() == pytest.approx([1, 1])


def test_stable_and_core_metrics_by_hand(both):
    found = stable_metrics(coefficient_table(both)).set_index("metric")
    assert found["sign"].to_dict() == {"cosine": 1, "norm": -1, "rank": 0, "angle": 1}
    assert found["stable"].to_dict() == {"cosine": True, "norm": True, "rank": False, "angle": True}
    # Angle is selected in one of five folds of ties; norm in exactly four of five.
    assert found["core"].to_dict() == {"cosine": True, "norm": True, "rank": False, "angle": False}
    assert found.loc["norm", "least_selected"] == pytest.approx(0.8)
    assert found.loc["norm", "contribution"] == pytest.approx((0.2 + 0.5) / 2)
    assert found.index.tolist()[0] == "norm", "the largest contribution comes first"


def test_a_mean_of_zero_has_no_sign_and_zero_weights_contribute_nothing():
    table = coefficient_table(_coefficients("ties", cosine=[1.0, -1.0], norm=[0.0, 0.0]))
    assert table["contribution"].tolist() == [0, 0]
    found = stable_metrics(table)
    assert found["sign"].tolist() == [0, 0]
    assert not found[["stable", "core"]].any(axis=None)


def test_targets_and_predictors_are_apart_and_nothing_gives_nothing(both):
    other = both.assign(coefficient=-both["coefficient"], predictor="ols", target="norm_acc")
    found = stable_metrics(coefficient_table(pd.concat([both, other], ignore_index=True)))
    signs = found.set_index(["target", "predictor", "metric"])["sign"]
    assert signs["acc", "ridge", "cosine"] == 1
    assert signs["norm_acc", "ols", "cosine"] == -1
    empty = coefficient_table(both.iloc[:0])
    assert len(empty) == len(stable_metrics(empty)) == 0
