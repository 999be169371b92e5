"""The last stage by itself: one check of the table, one study per table, and sentences where nothing is predicted."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.pipeline.predict import PairOutcomes, predict_pairs, predict_table, scored
from mergeability.pipeline.request import Request
from mergeability.pipeline.suites import TableSuite
from mergeability.prediction import PairTable, StudySettings

METRICS = ["first", "second"]
PAIRS = list(combinations("abcdef", 2))


@pytest.fixture
def outcomes():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(PAIRS, columns=["task_a", "task_b"])
    for metric in METRICS:
        frame[metric] = generator.normal(size=15)
    frame["acc_ties"] = 0.8 + 0.1 * frame["first"] + 0.01 * generator.normal(size=15)
    return PairOutcomes(frame, METRICS, ["ties"])


@pytest.fixture
def request_(tmp_path):
    settings = StudySettings(("loto",), ("acc",), permutations=0, seeds=0, ablation=False)
    return Request(
        TableSuite("table", str(tmp_path / "pairs.csv")),
        metrics={},
        merges={"ties": object()},
        predictors={"ols": LinearRegression()},
        prediction=settings,
    )


@pytest.fixture
def validated(monkeypatch):
    found = []
    original = PairTable.validate.__func__

    def counted(cls, frame, *arguments):
        found.append(frame)
        return original(cls, frame, *arguments)

    monkeypatch.setattr(PairTable, "validate", classmethod(counted))
    return found


def test_a_table_is_checked_once_and_studied_once(outcomes, request_, validated):
    run = Run()
    predicted = predict_table(outcomes, "per_method", request_, run)
    assert len(validated) == 1
    assert [record["predictor"] for record in predicted.study.records] == ["ols"]
    assert predicted.fitted.target == "acc"
    assert predicted.notes == ()
    assert "predicting" in run.clock.seconds
    again = predict_table(outcomes, "per_method", request_, run)
    assert again.study.records == predicted.study.records
    assert (run.store.computed["study"], run.store.found["study"]) == (1, 1)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t.drop(columns="task_b"), "no column task_b"),
        (
            lambda t: t.assign(task_a=t["task_a"].where(t.index != 1)),
            "Row 2 of the pair table has no task_a or no task_b",
        ),
        (lambda t: t.assign(task_a=range(15)), "Expected task names to be text, got"),
        (lambda t: t.assign(acc_ties="high"), "Expected numbers in column acc_ties, got 'high' in row 1"),
        (lambda t: t.head(2), "at least 4"),
    ],
)
def test_an_unusable_table_is_refused(outcomes, request_, spoil, sentence):
    spoiled = PairOutcomes(spoil(outcomes.pairs), METRICS, ["ties"])
    with pytest.raises(UserError, match=sentence):
        predict_table(spoiled, "per_method", request_, Run())


def test_where_nothing_is_predicted_a_note_says_why(outcomes, request_):
    without = PairOutcomes(outcomes.pairs, METRICS, [])
    found = predict_pairs(without, PAIRS, request_, Run())
    assert found.study is None
    assert found.fitted is None
    assert "no pair was merged" in found.notes[0]
    found = predict_pairs(outcomes, [("a", "b"), ("b", "c"), ("a", "b", "d")], request_, Run())
    assert "the chosen pairs have 3 tasks, fewer than 4" in found.notes[0]
    assert predict_pairs(outcomes, PAIRS, request_, Run()).study is not None


def test_scores_of_an_earlier_fit_are_compared_with_outcomes(outcomes, request_):
    fitted = predict_pairs(outcomes, PAIRS, request_, Run()).fitted
    found = scored(fitted, outcomes.pairs, request_)
    assert found.scorer is fitted
    assert found.scores["score_ties"].notna().all()
    assert found.transfer["n_pairs"].tolist() == [15]
