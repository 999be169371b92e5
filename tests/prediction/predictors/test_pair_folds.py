"""Folds that are made when they are asked for: the rows that they hold, and the memory that they do not."""

import tracemalloc
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.prediction import LeaveTwoTasksOut, PairTable
from mergeability.prediction.predictors.pair_folds import PairFolds
from mergeability.prediction.validation.folds import fit_folds, make_folds

PAIRS = list(combinations(range(6), 2))
TABLES = {
    "all pairs": PAIRS,
    "pairs missing": PAIRS[:3] + PAIRS[7:],
    "four tasks": list(combinations(range(4), 2)),
    "pairs that leave nothing": [(0, 1), (1, 2), (3, 4), (1, 3)],
    "a pair twice, the second time reversed": [*PAIRS, (3, 1)],
    "a task with itself": [*PAIRS, (2, 2)],
    "a star": [(0, 1), (0, 2), (0, 3)],
}


def _listed(pairs):
    """List the folds by sets of tasks."""
    folds = []
    for row, pair in enumerate(pairs):
        training = [i for i, other in enumerate(pairs) if not set(pair) & set(other)]
        if training:
            folds.append((training, [row]))
    return folds


@pytest.mark.parametrize("pairs", TABLES.values(), ids=TABLES)
def test_the_folds_are_those_of_sets_of_tasks(pairs):
    folds, expected = PairFolds(np.array(pairs)), _listed(pairs)
    assert len(folds) == len(expected)
    assert [(t.tolist(), v.tolist()) for t, v in folds] == expected
    assert [(t.tolist(), v.tolist()) for t, v in folds[1:3]] == expected[1:3]
    for index, (training, validation) in enumerate(expected):
        assert folds[index][0].tolist() == training
        assert folds[index][1].tolist() == validation


def test_repeated_pairs_and_pairs_of_one_task_are_noticed():
    distinct = {name: PairFolds(np.array(pairs)).distinct for name, pairs in TABLES.items()}
    odd = {"a pair twice, the second time reversed", "a task with itself"}
    assert {name for name, own in distinct.items() if not own} == odd


def test_without_pairs_there_is_no_fold():
    assert list(PairFolds(np.empty((0, 2), dtype=int))) == []


class Forgetful(RegressorMixin, BaseEstimator):
    """A predictor with inner folds that looks at its problems and keeps nothing."""

    closed_form = True

    def fit(self, X, y, folds=None):
        return self.fit_many([(X, y, folds)])[0]

    def fit_many(self, problems):
        for X, _, folds in problems:
            assert isinstance(folds, PairFolds), "inner folds are made one at a time"
            assert X[folds[0][0]].any()
        return [self] * len(problems)

    def predict(self, X):
        return np.zeros(len(X))


def test_training_rows_and_inner_folds_are_not_kept_in_memory_together():
    """Of 18 tasks, 40 metrics of all training rows take 6 MB and the rows of all inner folds 13 MB."""
    frame = pd.DataFrame(list(combinations([f"t{i:02}" for i in range(18)], 2)), columns=["task_a", "task_b"])
    metrics = [f"metric_{i}" for i in range(40)]
    generator = np.random.default_rng(0)
    values = pd.DataFrame(generator.normal(size=(len(frame), 41)), columns=[*metrics, "acc_ties"])
    table = PairTable.validate(pd.concat([frame, values], axis=1), metrics, ["acc_ties"])
    tracemalloc.start()
    folds = make_folds(table, ["ties"], ["acc"], LeaveTwoTasksOut()).folds
    fitted = fit_folds(Forgetful(), folds)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(fitted) == 153
    assert peak < 3e6
