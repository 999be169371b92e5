"""A result as a record: nothing is lost, and everything that determines it is in the key."""

import json
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression

from mergeability.prediction import (
    Dyadic,
    Pearson,
    PredictionResult,
    Ridge,
    StudySettings,
)
from mergeability.prediction.study import Known
from mergeability.prediction.study_cache import from_record, study_key, to_record

METRICS = ["first", "second", "third"]
PREDICTORS = {"mean": DummyRegressor(), "ridge": Ridge(), "pearson": Pearson(max_steps=20)}
KNOWN = Known(
    ranges={"first": (-5.0, 5.0)},
    categories={"one": ["first"], "rest": ["second", "third"]},
    sets=pd.DataFrame({"tasks": ["a+b+c"], "arity": [3], "norm_acc_ties": [0.5]}),
)
SETTINGS = StudySettings(targets=("norm_acc",), permutations=5, seeds=2)


def test_every_frame_comes_back_exactly(studied):
    result = studied.result
    assert result.folds["r"].isna().any(), "there must be something undefined"
    assert len(result.tables) > 8
    text = json.dumps(to_record(result), allow_nan=False)
    back = from_record(json.loads(text))
    assert back.records == result.records
    assert back.notes == result.notes
    for name in ("folds", "predictions", "coefficients"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(result, name), check_exact=True)
    assert list(back.tables) == list(result.tables)
    for name, frame in result.tables.items():
        pd.testing.assert_frame_equal(back.tables[name], frame.reset_index(drop=True), check_exact=True)
    assert json.dumps(to_record(back), allow_nan=False) == text


def test_an_empty_result_comes_back(table):
    back = from_record(json.loads(json.dumps(to_record(PredictionResult(notes=["nothing"])))))
    assert back.records == []
    assert back.notes == ["nothing"]
    assert list(back.predictions.columns) == list(PredictionResult().predictions.columns)


def test_whole_numbers_truth_values_and_undefined_numbers_keep_their_kind():
    frame = pd.DataFrame(
        {"n": [1, 2], "yes": [True, False], "r": [0.1 + 0.2, np.nan], "name": ["a", ""], "gone": [np.nan] * 2}
    )
    result = PredictionResult(tables={"t": frame})
    back = from_record(json.loads(json.dumps(to_record(result), allow_nan=False))).tables["t"]
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert [str(kind) for kind in back.dtypes] == [str(kind) for kind in frame.dtypes]


def _key(table, metrics=METRICS, predictors=PREDICTORS, methods=("ties",), settings=SETTINGS, known=KNOWN):
    return json.dumps(
        study_key(table, metrics, predictors, methods, settings, known), allow_nan=False, sort_keys=True
    )


def _cell(table):
    changed = table.copy()
    changed.loc[4, "second"] = np.nextafter(changed.loc[4, "second"], 9)
    return changed


CHANGES = {
    "a cell's last digit": lambda t: {"table": _cell(t)},
    "a column's name": lambda t: {"table": t.rename(columns={"norm_acc_average": "norm_acc_mean"})},
    "the order of pairs": lambda t: {"table": t.iloc[::-1]},
    "metrics": lambda t: {"metrics": METRICS[:2]},
    "methods": lambda t: {"methods": ("ties", "average")},
    "a predictor's parameter": lambda t: {"predictors": PREDICTORS | {"ridge": Ridge((1, 3))}},
    "a seed": lambda t: {"predictors": PREDICTORS | {"pearson": Pearson(max_steps=20, seed=1)}},
    "a predictor's class": lambda t: {"predictors": PREDICTORS | {"mean": LinearRegression()}},
    "a predictor more": lambda t: {"predictors": PREDICTORS | {"dyadic": Dyadic()}},
    "the order of predictors": lambda t: {"predictors": dict(reversed(PREDICTORS.items()))},
    "a range": lambda t: {"known": replace(KNOWN, ranges={"first": (-5.0, 6.0)})},
    "categories": lambda t: {"known": replace(KNOWN, categories={})},
    "a set's outcome": lambda t: {"known": replace(KNOWN, sets=KNOWN.sets.assign(norm_acc_ties=0.6))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_changes_with_all_that_matters(table, change):
    assert _key(**{"table": table, **change(table)}) != _key(table)
    assert _key(table.copy()) == _key(table)


OPTIONS = {
    "protocols": ("loto",),
    "targets": ("acc",),
    "rows": "complete",
    "permutations": 6,
    "seeds": 3,
    "seed": 1,
    "level": 0.8,
    "ablation": False,
}


@pytest.mark.parametrize(("option", "value"), OPTIONS.items(), ids=OPTIONS)
def test_the_key_changes_with_every_option(table, option, value):
    assert set(OPTIONS) == {one.name for one in fields(StudySettings)}
    assert _key(table, settings=replace(SETTINGS, **{option: value})) != _key(table)
