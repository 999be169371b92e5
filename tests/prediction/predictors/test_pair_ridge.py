"""Ridge in all folds of leaving two tasks out, against scikit-learn and plain refits fold by fold."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.prediction import Additive, LeaveTwoTasksOut, Ridge, evaluate_predictors
from mergeability.prediction.predictors import pair_ridge
from mergeability.prediction.predictors.moments import TaskSums
from mergeability.prediction.predictors.pair_folds import PairFolds
from mergeability.prediction.predictors.pair_ridge import applies, predicted_pairs

STRENGTHS = np.array([0.1, 1.0, 10.0, 1000.0])


@dataclass(frozen=True)
class Problem:
    """Columns and outcomes of some pairs."""

    ends: np.ndarray
    X: np.ndarray
    Y: np.ndarray


def _problem(tasks=8, metrics=4, outcomes=2, missing=(), tail=1):
    """Metrics and outcomes with task effects; `tail` > 1 makes those of some tasks far larger than others."""
    generator = np.random.default_rng(5)
    ends = np.delete(np.array(list(combinations(range(tasks), 2))), list(missing), axis=0)
    effects = generator.normal(size=(tasks, metrics)) ** tail
    X = effects[ends].sum(axis=1) + 0.5 * generator.normal(size=(len(ends), metrics))
    X = 2 * (X - X.min(axis=0)) / np.ptp(X, axis=0) - 1
    own = generator.normal(size=(tasks, outcomes))
    Y = X @ generator.normal(size=(metrics, outcomes)) + own[ends].sum(axis=1)
    return Problem(ends, X, Y + generator.normal(size=Y.shape))


def _changed(problem, column, values):
    X = problem.X.copy()
    X[:, column] = values
    return Problem(problem.ends, X, problem.Y)


def _cases():
    plain = _problem()
    one_task = (plain.ends == 3).any(axis=1) * np.random.default_rng(0).uniform(1, 2, len(plain.ends))
    return {
        "all pairs": plain,
        "pairs missing": _problem(missing=(0, 3, 9, 10, 20)),
        "a task with one pair": _problem(missing=(0, 1, 2, 3, 4, 5)),
        "more folds than are solved together": _problem(tasks=13),
        "four tasks": _problem(tasks=4),
        "five tasks and more columns than rows": _problem(tasks=5, metrics=12),
        "tasks far apart": _problem(tasks=9, tail=7),
        "a constant column": _changed(plain, 1, 0.0),
        "two equal columns": _changed(plain, 1, plain.X[:, 0]),
        "a column that only one task's pairs vary in": _changed(plain, 2, one_task),
        "far-off outcomes": Problem(plain.ends, plain.X + 5, plain.Y + 1e3),
    }


CASES = _cases()


def _separate_fits(problem, strengths=STRENGTHS):
    """Predict each pair by scikit-learn's ridge on the pairs without its tasks, beyond their mean outcome."""
    predicted, measured = [], []
    for row, pair in enumerate(problem.ends):
        kept = ~np.isin(problem.ends, pair).any(axis=1)
        if not kept.any():
            continue
        X, Y = problem.X[kept], problem.Y[kept]
        fits = [SklearnRidge(strength).fit(X, Y) for strength in strengths]
        predicted.append([fit.predict(problem.X[[row]])[0] - Y.mean(axis=0) for fit in fits])
        measured.append(problem.Y[row] - Y.mean(axis=0))
    return np.array(predicted).swapaxes(0, 1), np.array(measured)


@cache
def _expected(case):
    return _separate_fits(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_every_validated_pair_is_predicted_as_by_a_fit_of_its_own(case):
    problem = CASES[case]
    found = predicted_pairs(problem.X, problem.Y, PairFolds(problem.ends), STRENGTHS)
    for ours, theirs in zip(found, _expected(case), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steps", [0, 2])
def test_folds_that_do_not_converge_are_solved_directly(monkeypatch, steps):
    monkeypatch.setattr(pair_ridge, "_MAX_STEPS", steps)
    problem = CASES["tasks far apart"]
    predicted, _ = predicted_pairs(problem.X, problem.Y, PairFolds(problem.ends), STRENGTHS)
    np.testing.assert_allclose(predicted, _expected("tasks far apart")[0], rtol=1e-9, atol=1e-10)


def test_an_infinite_strength_predicts_the_training_mean():
    problem = CASES["pairs missing"]
    strengths = np.array([1.0, np.inf])
    predicted, _ = predicted_pairs(problem.X, problem.Y, PairFolds(problem.ends), strengths)
    assert (predicted[1] == 0).all()
    np.testing.assert_allclose(predicted[:1], _separate_fits(problem, strengths[:1])[0], atol=1e-10)


def _best(predicted, measured, strengths):
    """Choose by the largest correlation over separate fits, of equals the largest strength."""
    chosen = []
    for k in range(measured.shape[1]):
        p, m = predicted[:, :, k], measured[:, k]
        r = [np.corrcoef(one, m)[0, 1] if np.std(one) > 1e-9 * np.std(m) else -np.inf for one in p]
        chosen.append(strengths[len(r) - 1 - int(np.argmax(r[::-1]))])
    return chosen


def test_the_strength_is_that_of_a_loop_over_separate_fits():
    chosen = []
    for case, problem in CASES.items():
        folds = PairFolds(problem.ends)
        ours = [Ridge(STRENGTHS.tolist()).fit(problem.X, y, folds).strength_ for y in problem.Y.T]
        assert ours == _best(*_expected(case), STRENGTHS)
        chosen += ours
    assert len(set(chosen)) == 4, "there must have been something to choose"


def test_of_strengths_that_predict_alike_the_largest_is_taken():
    nothing = Problem(CASES["all pairs"].ends, np.zeros((28, 2)), CASES["all pairs"].Y)
    assert Ridge((1, 10)).fit(nothing.X, nothing.Y[:, 0], PairFolds(nothing.ends)).strength_ == 10
    # Of two tasks that were left out nothing is known, so task effects predict the mean at every strength.
    ends = nothing.ends
    incidence = (ends[:, :, None] == np.arange(8)).any(axis=1).astype(float)
    assert Additive(strengths=(0.1, 1, 10)).fit(incidence, nothing.Y[:, 0], PairFolds(ends)).strength_ == 10


def test_task_effects_are_solved_fold_by_fold_since_their_strengths_tie_but_for_rounding():
    problem = _problem(missing=(0,))
    incidence = (problem.ends[:, :, None] == np.arange(8)).any(axis=1).astype(float)
    folds = PairFolds(problem.ends)
    for seed in range(8):
        y = np.random.default_rng(seed).normal(size=len(incidence))
        # A plain list of folds does not say that each leaves out a pair's tasks.
        alone, listed = (Additive().fit(incidence, y, one) for one in (folds, list(folds)))
        assert alone.strength_ == listed.strength_


def test_the_short_cut_is_taken_for_pairs_alone_and_not_where_it_would_lose_digits():
    problem = CASES["all pairs"]
    folds = PairFolds(problem.ends)
    assert applies(problem.X, folds, STRENGTHS)
    assert not applies(problem.X, list(folds), STRENGTHS)
    assert not applies(problem.X, folds, np.array([1e-9, 1.0]))
    assert not applies(problem.X[:2], PairFolds(problem.ends[:2]), STRENGTHS), "there is no fold"
    twice = np.vstack([problem.ends, problem.ends[:1, ::-1]])
    assert not applies(np.vstack([problem.X, problem.X[:1]]), PairFolds(twice), STRENGTHS)


@pytest.mark.parametrize("missing", [(), (0, 3, 9)])
def test_sums_without_a_task_are_those_of_its_other_rows(missing):
    problem = _problem(missing=missing)
    X, Y = problem.X + 1e3, problem.Y - 1e3
    found = TaskSums(X, Y, problem.ends, 8).without_one(np.arange(8))
    for task in range(8):
        kept = (problem.ends != task).all(axis=1)
        x, y = X[kept] - X[kept].mean(axis=0), Y[kept] - Y[kept].mean(axis=0)
        np.testing.assert_allclose(found.gram[task], x.T @ x, atol=1e-9)
        np.testing.assert_allclose(found.cross[task], x.T @ y, atol=1e-9)
        np.testing.assert_allclose(found.means[task], X[kept].mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.outcome_means[task], Y[kept].mean(axis=0), rtol=1e-14)


def _table():
    """Seven tasks; a constant metric, one of few values, empty cells in a metric and an outcome, a missing pair."""
    generator = np.random.default_rng(7)
    frame = pd.DataFrame(list(combinations("abcdefg", 2)), columns=["task_a", "task_b"])
    for metric in ("first", "second", "third"):
        frame[metric] = generator.normal(size=len(frame))
    frame["constant"] = 0.5
    # Constant in the folds that leave b out.
    frame["of_one"] = frame["third"].where((frame[["task_a", "task_b"]] == "b").any(axis=1), 0.0)
    frame["tied"] = generator.integers(0, 2, len(frame))
    frame["acc_ties"] = frame["first"] + 0.3 * frame["tied"] + generator.normal(size=len(frame))
    frame["acc_average"] = generator.normal(size=len(frame))
    frame.loc[4, "second"] = np.nan
    frame.loc[11, "acc_average"] = np.nan
    return frame.drop(index=8).reset_index(drop=True)


METRICS = ["first", "second", "third", "constant", "of_one", "tied"]


def _scaled(training, rows):
    low, spread = training.min(axis=0), np.ptp(training, axis=0)
    return np.where(spread > 0, 2 * (rows - low) / np.where(spread > 0, spread, 1) - 1, 0.0)


def _refits(frame, outcome, strengths):
    """Predict every usable pair by loops over outer and inner folds, with nothing shared between them."""
    rows = frame.dropna(subset=[*METRICS, outcome])
    ends = rows[["task_a", "task_b"]].to_numpy()
    number = {task: i for i, task in enumerate("abcdefg")}
    ends = np.array([[number[a], number[b]] for a, b in ends])
    X, y = rows[METRICS].to_numpy(dtype=float), rows[outcome].to_numpy()
    predicted = {}
    for row, pair in enumerate(ends):
        kept = ~np.isin(ends, pair).any(axis=1)
        training = Problem(ends[kept], _scaled(X[kept], X[kept]), y[kept, None])
        fit = SklearnRidge(_best(*_separate_fits(training, strengths), strengths)[0]).fit(training.X, y[kept])
        key = rows["task_a"].iloc[row], rows["task_b"].iloc[row]
        predicted[key] = fit.predict(_scaled(X[kept], X[[row]]))[0]
    return predicted


def test_a_study_predicts_what_refits_without_any_short_cut_do():
    frame, strengths = _table(), np.array([1.0, 30.0])
    predictors = {"ridge": Ridge(strengths.tolist())}
    result = evaluate_predictors(frame, METRICS, predictors, protocols=[LeaveTwoTasksOut()])
    assert any("of_one is constant" in note for note in result.notes)
    for method in ("ties", "average"):
        own = result.predictions[result.predictions["method"] == method]
        expected = _refits(frame, f"acc_{method}", strengths)
        found = {(row.task_a, row.task_b): row.predicted for row in own.itertuples()}
        assert found == pytest.approx(expected, rel=1e-9)
