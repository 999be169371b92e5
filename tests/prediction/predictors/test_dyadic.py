"""Two stages of regression, each by scikit-learn on explicit residuals."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.errors import UserError
from mergeability.prediction import Additive, Dyadic, LeaveOneTaskOut, LeaveTwoTasksOut
from mergeability.prediction.pair_table import incidence

TASKS = tuple("abcdefgh")
PAIRS = list(combinations(TASKS, 2))
STRENGTHS = [1.0, 10.0, 100.0, float("inf")]


@pytest.fixture
def problem():
    """Metrics and an outcome with task effects, and a word of the first metric beyond them."""
    generator = np.random.default_rng(4)
    J = incidence(PAIRS, TASKS)
    X = J @ generator.normal(size=(8, 3)) + generator.normal(size=(28, 3)) + 2
    y = J @ generator.normal(size=8) + 0.5 * X[:, 0] + 0.3 * generator.normal(size=28)
    return X, J, y


def _two_stages(X, J, y, strength, task_strength=0.1):
    """Fit both stages and return how to predict; a third argument only predicts task effects."""
    of_outcome = SklearnRidge(task_strength).fit(J, y)
    of_metrics = SklearnRidge(task_strength).fit(J, X)
    if strength == float("inf"):
        return of_outcome.predict
    rest = SklearnRidge(strength).fit(X - of_metrics.predict(J), y - of_outcome.predict(J))
    return lambda j, x=None: of_outcome.predict(j) + rest.predict(x - of_metrics.predict(j))


def _predict(fitted, X, J, strength):
    return fitted(J) if strength == float("inf") else fitted(J, X)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("task_strength", [0.1, 5])
def test_each_strength_is_two_explicit_stages(problem, strength, task_strength):
    X, J, y = problem
    model = Dyadic(task_strength, (strength,)).fit(np.hstack([X, J]), y, tasks=8)
    expected = _predict(_two_stages(X, J, y, strength, task_strength), X, J, strength)
    np.testing.assert_allclose(model.predict(np.hstack([X, J])), expected, atol=1e-10)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_pairs_of_unseen_tasks_are_predicted_as_by_the_two_stages(problem, strength):
    X, J, y = problem
    kept = np.array([not set(pair) & {"a", "b"} for pair in PAIRS])
    model = Dyadic(0.1, (strength,)).fit(np.hstack([X, J])[kept], y[kept], tasks=8)
    fitted = _two_stages(X[kept], J[kept], y[kept], strength)
    np.testing.assert_allclose(
        model.predict(np.hstack([X, J])[~kept]), _predict(fitted, X[~kept], J[~kept], strength), atol=1e-10
    )
    # The columns of tasks that no training pair contains weigh nothing.
    np.testing.assert_allclose(model.coef_[3:5], 0, atol=1e-12)


def test_an_infinite_strength_and_no_inner_folds_are_additive(problem):
    X, J, y = problem
    additive = Additive(0.1).fit(J, y)
    for model in (Dyadic(strengths=(float("inf"),)), Dyadic()):
        model.fit(np.hstack([X, J]), y, tasks=8)
        assert model.metric_strength_ == float("inf")
        assert (model.coef_[:3] == 0).all()
        np.testing.assert_allclose(model.coef_[3:], additive.coef_, atol=1e-12)
        assert model.intercept_ == pytest.approx(additive.intercept_)


def _best(X, J, y, folds, score):
    """Score every strength over the folds by explicit fits; of equals the largest."""
    best, best_score = 0.0, -np.inf
    pieces_by_strength = {strength: [] for strength in STRENGTHS}
    for rows, out in folds:
        of_outcome = SklearnRidge(0.1).fit(J[rows], y[rows])
        of_metrics = SklearnRidge(0.1).fit(J[rows], X[rows])
        left_x, left_y = X[rows] - of_metrics.predict(J[rows]), y[rows] - of_outcome.predict(J[rows])
        new_x, additive = X[out] - of_metrics.predict(J[out]), of_outcome.predict(J[out])
        for strength, pieces in pieces_by_strength.items():
            metrics = (
                0.0 if strength == float("inf") else SklearnRidge(strength).fit(left_x, left_y).predict(new_x)
            )
            pieces.append((additive + metrics - y[rows].mean(), y[out] - y[rows].mean()))
    for strength, pieces in pieces_by_strength.items():
        value = score(pieces)
        if value >= best_score:
            best, best_score = strength, value
    return best


def _within(pieces):
    return -sum((((p - m) - (p - m).mean()) ** 2).sum() for p, m in pieces)


def _correlation(pieces):
    p, m = (np.concatenate([piece[side] for piece in pieces]) for side in (0, 1))
    return np.corrcoef(p, m)[0, 1] if p.std() > 1e-9 else -np.inf


@pytest.mark.parametrize(
    ("protocol", "score"), [(LeaveOneTaskOut(), _within), (LeaveTwoTasksOut(), _correlation)]
)
def test_the_strength_is_that_of_a_loop_over_explicit_stages(problem, protocol, score):
    X, J, y = problem
    folds = [(fold.training, fold.validation) for fold in protocol.folds(PAIRS)]
    chosen = []
    for seed in (0, 2, 4):
        outcome = y + seed * 0.4 * np.random.default_rng(seed).normal(size=28)
        model = Dyadic(strengths=STRENGTHS).fit(np.hstack([X, J]), outcome, folds, tasks=8)
        assert model.metric_strength_ == _best(X, J, outcome, folds, score)
        chosen.append(model.metric_strength_)
    assert len(set(chosen)) > 1, "there must have been something to choose"


def test_a_batch_gives_each_problem_what_it_gets_alone(problem):
    X, J, y = problem
    both = np.hstack([X, J])
    folds = [(fold.training, fold.validation) for fold in LeaveOneTaskOut().folds(PAIRS)]
    problems = [(both, y, folds), (both, y[::-1].copy(), folds), (both[:20], y[:20], None)]
    for together, (a, b, inner) in zip(Dyadic().fit_many(problems, 8), problems, strict=True):
        alone = Dyadic().fit(a, b, inner, tasks=8)
        assert together.metric_strength_ == alone.metric_strength_
        np.testing.assert_allclose(together.coef_, alone.coef_, atol=1e-10)
        assert together.intercept_ == pytest.approx(alone.intercept_)


def test_settings_that_cannot_be_solved_are_refused(problem):
    X, _, y = problem
    with pytest.raises(UserError, match="Expected a positive task_strength for the predictor dyadic"):
        Dyadic(0).fit(X, y)
    with pytest.raises(UserError, match="Expected positive penalty strengths for dyadic"):
        Dyadic(strengths=(0, 1)).fit(X, y)
    with pytest.raises(
        UserError, match="Expected tasks=… to be between 0 and the number of columns, 3, got 4"
    ):
        Dyadic().fit(X, y, tasks=4)
