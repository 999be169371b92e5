"""The whole study on a small table: which questions are answered, and in which words."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression

from mergeability.errors import UserError
from mergeability.prediction import (
    PairTable,
    Ridge,
    Scorer,
    StudySettings,
    evaluate_predictors,
    study_predictions,
)
from mergeability.prediction.questions.coefficients import coefficient_table
from mergeability.prediction.questions.consistency import method_consistency
from mergeability.prediction.questions.method_choice import method_choice
from mergeability.prediction.questions.variance import variance_split
from mergeability.prediction.study import Known, beyond_task_effects
from mergeability.prediction.study_cache import to_record
from mergeability.prediction.validation.intervals import conformal_table
from mergeability.prediction.validation.permutation import permutation_test

METRICS = ["first", "second", "third"]
OUTCOMES = [("norm_acc", "ties"), ("norm_acc", "average")]
SHORT = StudySettings(("loto",), ("norm_acc",), permutations=0, seeds=0, ablation=False)
FEW = {"mean": DummyRegressor(), "ridge": Ridge()}
CATEGORIES = {"one": ["first"], "rest": ["second", "third"], "none here": ["else"]}
ALWAYS = {"metric_weights", "stable_metrics", "fingerprints", "variance", "intervals", "method_choice"}
ALWAYS |= {"relabelling", "single_metrics", "consistency"}


def _study(table, settings=SHORT, known=None, **options):
    return study_predictions(table, METRICS, FEW, settings=settings, known=known, **options)


def test_every_question_has_its_table_and_all_of_it_is_json(studied):
    result = studied.result
    assert set(result.tables) == ALWAYS | {"ablation", "seeds", "sets"}
    assert all(len(frame) for frame in result.tables.values())
    json.dumps(to_record(result), allow_nan=False)
    json.dumps(result.records, allow_nan=False)


def test_what_is_not_asked_for_or_not_known_is_left_out(table):
    assert set(_study(table, SHORT, Known(categories=CATEGORIES)).tables) == ALWAYS
    # One category is all there is: nothing to refit without it.
    with_ablation = replace(SHORT, ablation=True)
    assert "ablation" not in _study(table, with_ablation, Known(categories={"all": METRICS})).tables
    alone = _study(table, SHORT, methods=["ties"]).tables
    assert set(alone) == ALWAYS - {"stable_metrics", "fingerprints", "consistency", "method_choice"}


def test_tables_are_those_of_the_parts(studied):
    table, result = studied.table, studied.result
    plain = evaluate_predictors(table, METRICS, studied.predictors, targets=["norm_acc"])
    assert result.records == plain.records
    checked = PairTable.validate(table, METRICS, ["norm_acc_ties", "norm_acc_average"])
    own = plain.coefficients[plain.coefficients["protocol"] == "loto"]
    expected = {
        "metric_weights": coefficient_table(own),
        "variance": variance_split(checked, OUTCOMES),
        "consistency": method_consistency(table, OUTCOMES),
        "intervals": conformal_table(plain.predictions),
        "method_choice": method_choice(plain.predictions),
        "relabelling": (tested := permutation_test(checked, OUTCOMES, 9)).methods,
        "single_metrics": tested.single,
    }
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(result.tables[name], frame)
    assert set(result.tables["seeds"]["predictor"]) == {"pearson"}
    assert set(result.tables["seeds"]["seeds"]) == {2}


def test_known_accuracies_are_a_baseline_beside_the_others(table):
    own = dict(zip("abcdef", np.linspace(0.5, 0.9, 6), strict=True))
    known = table.assign(finetuned_accuracy=(table["task_a"].map(own) + table["task_b"].map(own)) / 2)
    result = _study(known, replace(SHORT, protocols=("loto", "l2to")))
    records = [record for record in result.records if record["predictor"] == "finetuned"]
    alone = evaluate_predictors(
        known, ["finetuned_accuracy"], {"ols": LinearRegression()}, targets=["norm_acc"]
    )
    assert len(records) == 4
    assert [r | {"predictor": "ols"} for r in records] == alone.records
    assert "finetuned" in set(result.predictions["predictor"])
    assert "finetuned" not in set(result.coefficients["predictor"])
    assert "finetuned" in set(result.tables["intervals"]["predictor"])
    empty = _study(table.assign(finetuned_accuracy=np.nan))
    assert "finetuned" not in {record["predictor"] for record in empty.records}


def test_the_baseline_of_known_accuracies_has_the_pairs_of_the_others(table):
    table.loc[1, "third"] = np.nan
    result = _study(table.assign(finetuned_accuracy=np.linspace(0, 1, 15)))
    assert {record["n_pairs"] for record in result.records} == {14}


def test_complete_rows_are_the_same_pairs_everywhere(table):
    table.loc[2, "norm_acc_ties"] = np.nan
    settings = replace(SHORT, rows="complete")
    result = _study(table.assign(finetuned_accuracy=np.linspace(0, 1, 15)), settings)
    assert {record["n_pairs"] for record in result.records} == {14}
    assert set(result.tables["variance"]["n_pairs"]) == {14}
    assert set(result.tables["consistency"]["n_pairs"]) == {14}
    assert set(result.tables["single_metrics"]["n_pairs"]) == {14}


def test_a_metric_without_values_or_a_method_without_outcomes_does_not_stop_the_study(table):
    table["second"] = np.nan
    table["norm_acc_average"] = np.nan
    everything = replace(SHORT, permutations=2, seeds=1, ablation=True)
    result = _study(table, everything, Known(categories=CATEGORIES))
    assert {record["method"] for record in result.records} == {"ties"}
    assert set(result.tables["single_metrics"]["metric"]) == {"first", "third"}


def test_halves_can_be_studied_as_well(table):
    settings = replace(SHORT, protocols=("loto", "halves"), ablation=True)
    result = _study(table, settings, Known(categories=CATEGORIES))
    assert {record["protocol"] for record in result.records} == {"loto", "halves"}
    assert set(result.tables["ablation"]["protocol"]) == {"loto"}
    assert set(result.tables["intervals"]["protocol"]) == {"loto", "halves"}


def test_without_outcomes_there_are_no_tables(table):
    result = _study(table[["task_a", "task_b", *METRICS]])
    assert result.records == []
    assert result.tables == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protocols": ("loocv",)}, "among loto, l2to, halves"),
        ({"permutations": -1}, "permutations to be an integer of at least 0"),
        ({"permutations": True}, "permutations to be an integer"),
        ({"seeds": -2}, "seeds to be an integer"),
        ({"level": 1.0}, "level of intervals to be between 0 and 1"),
        ({"level": 0}, "level of intervals to be between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        StudySettings(**options)


def test_whether_metrics_add_to_task_effects_is_said_in_words():
    rows = [
        ("acc", "ties", 0.124, 0.001),
        ("acc", "tsv", 0.2, 0.4),
        ("acc", "dare", -0.03, 0.02),
        ("acc", "flat", np.nan, np.nan),
        ("acc", "untested", 0.1, np.nan),
        ("norm_acc", "ties", 0.5, 0.001),
    ]
    frame = pd.DataFrame(rows, columns=["target", "method", "gain", "p_beyond"])
    start = "their squared error for a left-out task's pairs changes by"
    assert beyond_task_effects(frame, "acc") == [
        f"ties: the metrics improve predictions beyond task effects ({start} -12.4 %, p = 0.001 by a permutation test over tasks).",
        f"tsv: the metrics add nothing beyond task effects ({start} -20.0 %, p = 0.400 by a permutation test over tasks).",
        f"dare: the metrics add nothing beyond task effects ({start} +3.0 %, p = 0.020 by a permutation test over tasks).",
        f"untested: the metrics improve predictions beyond task effects ({start} -10.0 %).",
    ]


def test_metrics_that_say_something_of_the_pair_are_told_from_those_that_do_not():
    """Outcomes of nine tasks: `ties` listens to the pair's metric, `average` to who is in the pair."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(list(combinations("abcdefghi", 2)), columns=["task_a", "task_b"])
    for metric in METRICS:
        frame[metric] = generator.normal(size=36)
    own = dict(zip("abcdefghi", generator.normal(size=9), strict=True))
    common = frame["task_a"].map(own) + frame["task_b"].map(own)
    frame["norm_acc_ties"] = common + frame["first"]
    frame["norm_acc_average"] = common + 0.5 * generator.normal(size=36)
    result = _study(frame, replace(SHORT, permutations=39))
    sentences = beyond_task_effects(result.tables["relabelling"], "norm_acc")
    assert sentences[0].startswith("ties: the metrics improve predictions beyond task effects")
    assert sentences[1].startswith("average: the metrics add nothing beyond task effects")


@pytest.mark.parametrize("rows", ["per_method", "complete"])
def test_a_study_with_every_question_checks_its_table_once(table, monkeypatch, rows):
    validated = []
    original = PairTable.validate.__func__

    def counted(cls, frame, *arguments):
        validated.append(frame)
        return original(cls, frame, *arguments)

    monkeypatch.setattr(PairTable, "validate", classmethod(counted))
    known = table.assign(finetuned_accuracy=np.linspace(0, 1, 15))
    settings = StudySettings(protocols=("loto",), targets=("norm_acc",), permutations=1, seeds=1, rows=rows)
    result = _study(known, settings, Known(categories=CATEGORIES), methods=["ties"])
    assert "ablation" in result.tables
    assert "finetuned" in {record["predictor"] for record in result.records}
    assert len(validated) == 1
    Scorer.fit(
        PairTable.of(known, METRICS, ["ties", "average"], ["norm_acc"]),
        METRICS,
        ["ties"],
        {"one": ["first"]},
    )
    assert len(validated) == 2


def test_a_checked_table_gives_the_study_of_its_data_frame(table):
    table.loc[3, "third"] = np.nan
    known = table.assign(finetuned_accuracy=np.linspace(0, 1, 15), never=np.nan)
    metrics = [*METRICS, "never"]
    checked = PairTable.of(known, metrics, ["ties", "average"], ["norm_acc"], also=["finetuned_accuracy"])
    of_frame, of_table = (study_predictions(one, metrics, FEW, settings=SHORT) for one in (known, checked))
    assert to_record(of_frame) == to_record(of_table)
    assert any("never has no value" in note for note in of_frame.notes)
    with pytest.raises(UserError, match="no column unknown"):
        study_predictions(checked, ["unknown"], FEW, settings=SHORT)


def test_values_outside_the_range_of_a_metric_are_refused_before_anything_is_fitted(table):
    with pytest.raises(UserError, match="outside the metric's range"):
        _study(table, known=Known(ranges={"first": (-0.1, 0.1)}))


def test_own_accuracies_of_pairs_without_all_metrics_are_no_baseline(table):
    known = table.assign(finetuned_accuracy=0.9 + 0.01 * np.arange(15) / 15)
    assert "finetuned" in {record["predictor"] for record in _study(known).records}
    known.loc[1:, "finetuned_accuracy"] = np.nan
    known.loc[0, "first"] = np.nan
    assert {record["predictor"] for record in _study(known).records} == set(FEW)


def test_a_table_in_which_no_two_tasks_can_be_left_out_has_no_records(table):
    star = table[table["task_a"] == "a"].reset_index(drop=True)
    result = _study(star, replace(SHORT, protocols=("l2to",)))
    assert result.records == []
    assert result.tables == {}
