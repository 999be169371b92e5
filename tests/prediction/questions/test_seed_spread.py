"""Spread over random starts: equal to fits of one seed at a time."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.base import clone

from mergeability.prediction import MLP, LeaveOneTaskOut, PairTable, Pearson, Ridge, Trees
from mergeability.prediction.predictors.base import traits
from mergeability.prediction.predictors.scaling import RangeScaler
from mergeability.prediction.questions.seed_spread import seed_spread, seed_table
from mergeability.prediction.validation.folds import make_folds

METRICS = ["first", "second", "third"]


@pytest.fixture
def folds(table):
    checked = PairTable.validate(table, METRICS, ["norm_acc_ties", "norm_acc_average"])
    return make_folds(checked, ["ties", "average"], ["norm_acc"], LeaveOneTaskOut()).folds


def test_what_starts_at_random_is_known():
    assert [traits(one).random_start for one in (Pearson(), MLP(), Ridge(), Trees())] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("model", [Pearson(max_steps=30), MLP(epochs=5)], ids=["pearson", "mlp"])
def test_each_seed_gives_what_it_gives_alone(table, folds, model):
    spread = seed_spread({"it": model, "ridge": Ridge()}, folds, [3, 7])
    assert set(spread["predictor"]) == {"it"}
    for row in spread.itertuples():
        y = table[f"norm_acc_{row.method}"].to_numpy()
        r = []
        for task in "abcdef":
            out = ((table["task_a"] == task) | (table["task_b"] == task)).to_numpy()
            scaler = RangeScaler().fit(table.loc[~out, METRICS].to_numpy())
            X = scaler.transform(table[METRICS].to_numpy())
            alone = clone(model).set_params(seed=row.seed).fit(X[~out], y[~out])
            r.append(pearsonr(alone.predict(X[out]), y[out])[0])
        assert row.r == pytest.approx(np.mean(r), abs=2e-4)
    assert sorted(zip(spread["method"], spread["seed"], strict=True)) == [
        ("average", 3),
        ("average", 7),
        ("ties", 3),
        ("ties", 7),
    ]
    assert spread.groupby("method")["r"].nunique().tolist() == [2, 2]


def test_the_summary_by_hand():
    rows = [("pearson", "acc", "ties", seed, r) for seed, r in enumerate([0.1, 0.4, 0.7])]
    rows += [("pearson", "acc", "tsv", 0, 0.5)]
    found = seed_table(pd.DataFrame(rows, columns=["predictor", "target", "method", "seed", "r"]))
    assert found["method"].tolist() == ["ties", "tsv"]
    first = found.iloc[0]
    assert (first["seeds"], first["r_least"], first["r_most"]) == (3, 0.1, 0.7)
    assert first["r_mean"] == pytest.approx(0.4)
    assert first["r_std"] == pytest.approx(np.sqrt(0.06))


def test_without_a_random_start_the_tables_are_empty(folds):
    spread = seed_spread({"ridge": Ridge()}, folds, [0, 1])
    assert len(spread) == len(seed_table(spread)) == 0
