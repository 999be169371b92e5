"""Scores of sets from scores of pairs, by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from mergeability.prediction.questions.set_scores import MEASURED, set_score_table

TASKS = "abcde"


def _predictions(rows, predictor="ridge", protocol="loto"):
    frame = pd.DataFrame(rows, columns=["task_a", "task_b", "predicted"])
    return frame.assign(protocol=protocol, target="acc", method="ties", predictor=predictor)


@pytest.fixture
def pairs():
    frame = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
    return frame.assign(acc_ties=np.random.default_rng(0).uniform(size=10))


@pytest.fixture
def sets():
    names = ["+".join(one) for one in combinations(TASKS, 3)]
    frame = pd.DataFrame({"tasks": names, "arity": 3})
    return frame.assign(acc_ties=np.random.default_rng(1).uniform(size=10))


def _expected(sets, scores):
    of_sets = [
        np.mean([scores[frozenset(pair)] for pair in combinations(tasks.split("+"), 2)])
        for tasks in sets["tasks"]
    ]
    return spearmanr(of_sets, sets["acc_ties"])[0]


def test_a_pairs_score_is_the_mean_of_its_folds_and_a_sets_that_of_its_pairs(pairs, sets):
    generator = np.random.default_rng(2)
    ends = list(combinations(TASKS, 2))
    # Each pair twice, as where one task is left out; in the table its tasks are the other way round.
    rows = [(b, a, generator.normal()) for a, b in ends * 2]
    scores = {frozenset((a, b)): (rows[i][2] + rows[i + 10][2]) / 2 for i, (a, b) in enumerate(ends)}
    found = set_score_table(sets, pairs, _predictions(rows)).set_index("predictor")
    assert found.loc["ridge", "rho"] == pytest.approx(_expected(sets, scores))
    assert found.loc["ridge", ["arity", "n_sets"]].tolist() == [3, 10]


def test_measured_pairs_stand_beside_every_predictor(pairs, sets):
    predictions = _predictions([(a, b, 1.0 * i) for i, (a, b) in enumerate(combinations(TASKS, 2))])
    found = set_score_table(sets, pairs, predictions).set_index("predictor")
    known = {
        frozenset((a, b)): value
        for a, b, value in pairs[["task_a", "task_b", "acc_ties"]].to_numpy().tolist()
    }
    assert found.loc[MEASURED, "rho"] == pytest.approx(_expected(sets, known))
    assert found.loc[MEASURED, "protocol"] == ""


def test_sets_with_a_pair_that_has_no_score_or_without_an_outcome_are_left_out(pairs, sets):
    rows = [(a, b, 1.0 * i) for i, (a, b) in enumerate(combinations(TASKS, 2)) if (a, b) != ("a", "b")]
    sets.loc[sets["tasks"] == "c+d+e", "acc_ties"] = np.nan
    pairs.loc[0, "acc_ties"] = np.nan
    found = set_score_table(sets, pairs, _predictions(rows)).set_index("predictor")
    # Three of ten sets contain a and b, one has no outcome.
    assert found["n_sets"].to_dict() == {"ridge": 6, MEASURED: 6}


def test_arities_are_apart_and_fewer_than_three_sets_have_no_rank_correlation(pairs, sets):
    more = pd.DataFrame({"tasks": ["a+b+c+d", "b+c+d+e"], "arity": 4, "acc_ties": [0.1, 0.2]})
    predictions = _predictions([(a, b, 1.0 * i) for i, (a, b) in enumerate(combinations(TASKS, 2))])
    found = set_score_table(pd.concat([sets, more], ignore_index=True), pairs, predictions)
    found = found[found["predictor"] == "ridge"]
    assert found["arity"].tolist() == [3, 4]
    assert found["n_sets"].tolist() == [10, 2]
    assert found["rho"].isna().tolist() == [False, True]


def test_a_method_that_no_set_was_merged_with_has_no_row(pairs, sets):
    predictions = _predictions([(a, b, 0.5) for a, b in combinations(TASKS, 2)]).assign(method="tsv")
    assert len(set_score_table(sets, pairs, predictions)) == 0
