"""Ridge, its sums of products and its choice of a strength: against scikit-learn and loops."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from mergeability.errors import UserError
from mergeability.prediction import Additive, LeaveOneTaskOut, LeaveTwoTasksOut, Ridge
from mergeability.prediction.pair_table import incidence
from mergeability.prediction.predictors.ridge import (
    Moments,
    best_strengths,
    ridge_weights,
    training_masks,
    validated,
)

STRENGTHS = np.array([0.1, 1.0, 10.0, 100.0])
TASKS = tuple("abcdefgh")
PAIRS = list(combinations(TASKS, 2))


@pytest.fixture
def problem():
    """Eight tasks, 28 pairs, four metrics and three outcomes that listen to them more and less."""
    generator = np.random.default_rng(11)
    X = generator.uniform(-1, 1, size=(28, 4))
    effects = generator.normal(size=(8, 3))
    signal = X @ generator.normal(size=(4, 3)) * np.array([1.0, 0.3, 0.0])
    return X, signal + incidence(PAIRS, TASKS) @ effects * 0.3 + 0.3 * generator.normal(size=(28, 3))


def _inner(protocol):
    return [(fold.training, fold.validation) for fold in protocol.folds(PAIRS)]


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_the_direct_sums_even_about_far_off_means(problem, offset):
    X, Y = problem[0] + offset, problem[1] - offset
    folds = _inner(LeaveOneTaskOut())
    found = Moments(X, Y, training_masks(folds, 28))
    for f, (rows, _) in enumerate(folds):
        x, y = X[rows] - X[rows].mean(axis=0), Y[rows] - Y[rows].mean(axis=0)
        np.testing.assert_allclose(found.gram[f], x.T @ x, atol=1e-8)
        np.testing.assert_allclose(found.cross[f], x.T @ y, atol=1e-8)
        np.testing.assert_allclose(found.means[f], X[rows].mean(axis=0), rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(found.outcome_means[f], Y[rows].mean(axis=0), rtol=1e-14, atol=1e-14)


def test_training_masks_mark_the_rows_of_each_fold():
    masks = training_masks([(np.array([0, 2]), np.array([1])), (np.array([1]), np.array([0]))], 3)
    np.testing.assert_array_equal(masks, [[True, False, True], [False, True, False]])


def test_weights_are_scikit_learns_for_every_fold_strength_and_outcome(problem):
    X, Y = problem
    folds = _inner(LeaveOneTaskOut())
    moments = Moments(X, Y, training_masks(folds, 28))
    weights = ridge_weights(moments.gram, moments.cross, STRENGTHS)
    assert weights.shape == (8, 4, 4, 3)
    for f, (rows, _) in enumerate(folds):
        for s, strength in enumerate(STRENGTHS):
            judge = SklearnRidge(strength).fit(X[rows], Y[rows])
            np.testing.assert_allclose(weights[f, s], judge.coef_.T, atol=1e-10)


def test_an_infinite_strength_weighs_nothing_and_collinear_metrics_share(problem):
    X, Y = np.column_stack([problem[0], problem[0][:, 0]]), problem[1]
    moments = Moments(X, Y, np.ones((1, 28), dtype=bool))
    weights = ridge_weights(moments.gram, moments.cross, np.array([1e-3, np.inf]))
    assert (weights[0, 1] == 0).all()
    np.testing.assert_allclose(weights[0, 0, 0], weights[0, 0, 4])


def test_validation_predictions_are_those_of_separate_fits_beyond_the_training_mean(problem):
    X, Y = problem
    # More folds than are solved together.
    folds = _inner(LeaveTwoTasksOut()) * 3
    assert len(folds) == 84

    def solve(moments):
        return ridge_weights(moments.gram, moments.cross, STRENGTHS)

    expected = [
        [SklearnRidge(one).fit(X[rows], Y[rows]).predict(X[out]) - Y[rows].mean(axis=0) for one in STRENGTHS]
        for rows, out in folds[:28]
    ] * 3
    for (predicted, measured), (rows, out), fits in zip(
        validated(X, Y, folds, solve), folds, expected, strict=True
    ):
        np.testing.assert_allclose(predicted, fits, atol=1e-10)
        np.testing.assert_allclose(measured, Y[out] - Y[rows].mean(axis=0))


def _brute_force(X, Y, folds, criterion):
    """Score every strength by fits of scikit-learn, and keep the largest of the best."""
    chosen, best = np.zeros(Y.shape[1]), np.full(Y.shape[1], -np.inf)
    for strength in STRENGTHS:
        # scikit-learn fits each outcome by itself.
        beyond = [
            SklearnRidge(strength).fit(X[rows], Y[rows]).predict(X[out]) - Y[rows].mean(axis=0)
            for rows, out in folds
        ]
        truth = [Y[out] - Y[rows].mean(axis=0) for rows, out in folds]
        for k in range(Y.shape[1]):
            predicted, measured = ([fold[:, k] for fold in side] for side in (beyond, truth))
            if criterion == "correlation":
                score = np.corrcoef(np.concatenate(predicted), np.concatenate(measured))[0, 1]
            else:
                errors = [p - m for p, m in zip(predicted, measured, strict=True)]
                if criterion == "within":
                    errors = [error - error.mean() for error in errors]
                score = -sum((error**2).sum() for error in errors)
            if score >= best[k]:
                chosen[k], best[k] = strength, score
    return chosen.tolist()


CASES = [
    (LeaveOneTaskOut(), "squared error", False),
    (LeaveOneTaskOut(), "within", True),
    (LeaveTwoTasksOut(), "correlation", False),
    (LeaveTwoTasksOut(), "correlation", True),
]


@pytest.mark.parametrize(("protocol", "criterion", "within"), CASES)
def test_the_strength_that_foresees_best_is_that_of_a_loop_over_fits(problem, protocol, criterion, within):
    found = set()
    for seed in range(3):
        generator = np.random.default_rng(seed)
        X, Y = problem[0], problem[1] + generator.normal(size=(28, 3))
        folds = _inner(protocol)

        def solve(moments):
            return ridge_weights(moments.gram, moments.cross, STRENGTHS)

        chosen = best_strengths(validated(X, Y, folds, solve), 4, within=within)
        assert STRENGTHS[chosen].tolist() == _brute_force(X, Y, folds, criterion)
        found |= set(chosen.tolist())
    assert len(found) > 2, "every case must have something to choose"


def test_the_three_criteria_by_hand():
    def one_fold(predicted, measured):
        """Predictions of two strengths for one fold of one outcome."""
        return np.array(predicted, dtype=float)[:, :, None], np.array(measured, dtype=float)[:, None]

    # The first strength has the right differences at the wrong level, the second the level alone.
    fold = one_fold([[5, 6, 7], [0, 0, 0]], [-1, 0, 1])
    assert best_strengths(iter([fold]), 2).tolist() == [1]
    assert best_strengths(iter([fold]), 2, within=True).tolist() == [0]
    # Single rows: the first strength correlates, if far too large; the second has the smaller error.
    single = [one_fold([[10.0 * y], [y * (-1) ** i / 2]], [y]) for i, y in enumerate([-1, 0.4, 1, 2])]
    assert best_strengths(iter(single), 2).tolist() == [0]
    assert best_strengths(iter([]), 2) is None


def test_of_equal_strengths_the_largest_wins():
    predicted = np.zeros((3, 4, 1))
    assert best_strengths(iter([(predicted, np.arange(4.0)[:, None])]), 3).tolist() == [2]
    # Single rows and nothing that varies: no correlation, so the largest as well.
    single = [(np.zeros((3, 1, 1)), np.array([[float(i)]])) for i in range(4)]
    assert best_strengths(iter(single), 3).tolist() == [2]
    same = [(np.full((3, 1, 1), float(i)), np.array([[float(i)]])) for i in range(4)]
    assert best_strengths(iter(same), 3).tolist() == [2]


@pytest.mark.parametrize(("protocol", "criterion", "within"), [CASES[0], CASES[2]])
def test_ridge_is_scikit_learns_at_the_strength_of_the_loop(problem, protocol, criterion, within):
    X, Y = problem
    folds = _inner(protocol)
    for y, strength in zip(Y.T, _brute_force(X, Y, folds, criterion), strict=True):
        ours, judge = Ridge(STRENGTHS.tolist()).fit(X, y, folds), SklearnRidge(strength).fit(X, y)
        assert ours.strength_ == strength
        np.testing.assert_allclose(ours.coef_, judge.coef_, atol=1e-12)
        np.testing.assert_allclose(ours.predict(X + 1), judge.predict(X + 1))


@pytest.mark.parametrize("strength", [0.1, 1, 1000])
def test_ridge_of_one_strength_is_scikit_learns(problem, strength):
    X, y = problem[0] + 5, problem[1][:, 0]
    ours, judge = Ridge((strength,)).fit(X, y, _inner(LeaveOneTaskOut())), SklearnRidge(strength).fit(X, y)
    np.testing.assert_allclose(ours.coef_, judge.coef_)
    assert ours.intercept_ == pytest.approx(judge.intercept_)


def test_without_inner_folds_the_middle_strength_is_taken(problem):
    assert Ridge((100, 1, 10)).fit(problem[0], problem[1][:, 0]).strength_ == 10


def test_a_batch_gives_each_problem_what_it_gets_alone(problem):
    X, Y = problem
    folds, others = _inner(LeaveOneTaskOut()), _inner(LeaveOneTaskOut())[:3]
    columns = [np.ascontiguousarray(y) for y in Y.T]
    problems = [(X, y, folds) for y in columns]  # shared rows and folds
    problems += [(X, columns[0], others), (X[:20], columns[1][:20], None), (X, columns[1], folds)]
    problems += [(X, columns[0], None)]  # shared rows alone: the middle strength
    for model in (Ridge(STRENGTHS.tolist()), Additive(strengths=STRENGTHS.tolist())):
        for (a, b, inner), together in zip(problems, model.fit_many(problems), strict=True):
            alone = type(model)(strengths=STRENGTHS.tolist()).fit(a, b, inner)
            assert together.strength_ == alone.strength_
            np.testing.assert_allclose(together.coef_, alone.coef_, rtol=1e-9)
            assert together.intercept_ == pytest.approx(alone.intercept_)


@pytest.mark.parametrize("strengths", [(), (0, 1), (-1,), (float("nan"),)])
def test_strengths_that_cannot_be_solved_are_refused(problem, strengths):
    with pytest.raises(UserError, match="Expected positive penalty strengths for ridge"):
        Ridge(strengths).fit(problem[0], problem[1][:, 0])


@pytest.mark.parametrize("strength", [0.01, 0.1, 3.0])
def test_additive_with_a_given_strength_is_scikit_learns_ridge_on_incidence(problem, strength):
    J, y = incidence(PAIRS, TASKS), problem[1][:, 0]
    ours, judge = Additive(strength).fit(J, y), SklearnRidge(strength).fit(J, y)
    np.testing.assert_allclose(ours.coef_, judge.coef_, atol=1e-12)
    assert ours.intercept_ == pytest.approx(judge.intercept_)


def test_additive_chooses_its_strength_as_a_loop_over_fits_does(problem):
    J, Y = incidence(PAIRS, TASKS), problem[1]
    folds = _inner(LeaveOneTaskOut())
    for y, strength in zip(Y.T, _brute_force(J, Y, folds, "squared error"), strict=True):
        assert Additive(strengths=STRENGTHS.tolist()).fit(J, y, folds).strength_ == strength


@pytest.mark.parametrize("seed", range(6))
def test_where_two_new_tasks_are_foreseen_additive_has_nothing_to_choose_and_takes_the_largest(seed):
    """Of two left-out tasks nothing is known: every strength predicts the training mean, but for rounding."""
    J, y = incidence(PAIRS, TASKS), np.random.default_rng(seed).uniform(size=28)
    folds = _inner(LeaveTwoTasksOut())
    assert Additive(strengths=STRENGTHS.tolist()).fit(J, y, folds).strength_ == 100


def test_additive_predicts_the_training_mean_for_two_new_tasks_and_speaks_of_a_partner_it_knows(problem):
    J, y = incidence(PAIRS, TASKS), problem[1][:, 0]
    known = [i for i, pair in enumerate(PAIRS) if not set(pair) & {"a", "b"}]
    model = Additive(1e-9).fit(J[known], y[known])
    new = model.predict(J[[PAIRS.index(("a", "b"))]])[0]
    partner = model.predict(J[[PAIRS.index(("a", "c"))]])[0]
    # Every known task is in equally many pairs, so the effects have mean 0.
    assert new == pytest.approx(y[known].mean())
    assert partner - new == pytest.approx(model.coef_[2])
    assert abs(model.coef_[2]) > 0.01
