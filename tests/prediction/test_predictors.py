"""Each predictor against an independent solution."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergeability.errors import UserError
from mergeability.prediction import Additive, Lasso, Pearson
from mergeability.prediction.pearson import correlation_and_slope
from mergeability.prediction.scaling import RangeScaler

PUBLISHED_L1 = {
    "penalty": 1.0,
    "initial_std": 0.1,
    "sum_to_one": False,
    "max_steps": 2000,
    "patience": 100,
    "tolerance": 1e-5,
    "cutoff": 1e-3,
}


@parametrize_with_checks([Additive(), Lasso(), Pearson(), RangeScaler()])
def test_scikit_learns_own_checks(estimator, check):
    if "errors_in_init" in str(check) and hasattr(type(estimator).__init__, "__wrapped__"):
        pytest.skip(
            "types are checked at run time here, which refuses nonsense where scikit-learn waits for fit"
        )
    check(estimator)


@pytest.fixture
def problem():
    generator = np.random.default_rng(5)
    X = generator.uniform(-1, 1, size=(50, 6))
    return X, 0.8 + X @ np.array([0.2, -0.1, 0.05, 0.0, 0.0, 0.0]) + 0.02 * generator.normal(size=50)


def test_additive_is_ridge_on_incidence(problem):
    X, y = np.abs(problem[0]) > 0.5, problem[1]
    ours, judge = Additive(0.1).fit(X, y), Ridge(0.1).fit(X, y)
    np.testing.assert_allclose(ours.coef_, judge.coef_)
    np.testing.assert_allclose(ours.predict(X), judge.predict(X))


def test_additive_by_hand():
    # Two pairs, a+b = 1 and a+c = 0, strength 1. By symmetry u_a = 0 and u_b = -u_c = u; minimising
    # (1/2 - u)² + (-1/2 + u)² + 2 u² gives u = 1/4.
    model = Additive(1).fit(np.array([[1.0, 1, 0], [1, 0, 1]]), np.array([1.0, 0.0]))
    np.testing.assert_allclose(model.coef_, [0, 0.25, -0.25], atol=1e-12)
    assert model.predict(np.array([[0.0, 1.0, 0.0]]))[0] == pytest.approx(0.75)


def test_additive_refuses_a_strength_that_cannot_be_solved(problem):
    with pytest.raises(UserError, match="positive"):
        Additive(0.0).fit(*problem)


def test_lasso_solves_the_problem_at_the_strength_it_chose(problem):
    X, y = problem
    model = Lasso(tolerance=1e-8).fit(X, y)
    judge = SklearnLasso(alpha=model.strength_, tol=1e-10).fit(X, y)
    np.testing.assert_allclose(model.coef_, judge.coef_, atol=1e-5)
    assert model.intercept_ == pytest.approx(judge.intercept_, abs=1e-5)


def test_lasso_chooses_the_strength_with_the_least_error_on_the_folds_it_is_given(problem):
    X, y = problem
    folds = np.arange(50) % 3 == np.arange(3)[:, None]
    model = Lasso(strengths=6, tolerance=1e-8).fit(X, y, folds=folds)
    largest = np.abs((X - X.mean(0)).T @ (y - y.mean())).max() / len(y)
    grid = largest * 0.01 ** (np.arange(6) / 5)

    def error(strength):
        fits = [SklearnLasso(alpha=strength, tol=1e-10).fit(X[~out], y[~out]) for out in folds]
        return np.mean(
            [np.mean((fit.predict(X[out]) - y[out]) ** 2) for fit, out in zip(fits, folds, strict=True)]
        )

    assert model.strength_ == pytest.approx(grid[np.argmin([error(strength) for strength in grid])])


def test_a_lasso_cut_short_says_so(problem, caplog):
    Lasso(max_sweeps=1, tolerance=1e-12).fit(*problem)
    assert "coefficients are approximate" in caplog.text
    caplog.clear()
    Lasso().fit(*problem)
    assert not caplog.text


def test_lasso_of_a_constant_outcome_weighs_nothing(problem):
    model = Lasso().fit(problem[0], np.full(50, 0.7))
    assert not model.coef_.any()
    assert model.intercept_ == pytest.approx(0.7)


def test_slope_of_the_correlation_is_autograds():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(30, generator=generator, dtype=torch.float64)
    w = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    r = torch.corrcoef(torch.stack([X @ w, y]))[0, 1]
    r.backward()
    centred = (X - X.mean(0)).numpy()
    c = centred.T @ y.numpy() / 30 / y.numpy().std()
    ours, slope = correlation_and_slope((centred.T @ centred / 30)[None], c[None], w.detach().numpy()[None])
    assert ours[0] == pytest.approx(r.item())
    np.testing.assert_allclose(slope[0], w.grad.numpy(), rtol=1e-5)


# Penalised weights end up swinging around 0, where rounding decides: their first steps are compared.
@pytest.mark.parametrize("settings", [{}, PUBLISHED_L1 | {"max_steps": 100}])
def test_pearson_takes_the_steps_of_torchs_adam(problem, settings):
    """The published loop, written with autograd and torch.optim, from the same start and with the same stop."""
    X, y = problem
    model = Pearson(**settings, seed=2).fit(X, y)
    start = model.initial_std * np.random.default_rng(2).standard_normal(6, dtype=np.float32)
    weights = torch.tensor(start, requires_grad=True)
    features, outcome = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    best, waited, steps = np.inf, 0, 0
    while steps < model.max_steps and waited < model.patience:
        if model.sum_to_one:
            with torch.no_grad():
                weights /= weights.sum() + 1e-8
        score = features @ weights.double()
        score = score - score.mean()
        centred = outcome - outcome.mean()
        loss = model.penalty * weights.abs().sum() - score @ centred / (score.norm() * centred.norm() + 1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        best, waited = (loss.item(), 0) if loss.item() < best - model.tolerance else (best, waited + 1)
    expected = weights.detach().numpy()
    expected = np.where(np.abs(expected) < model.cutoff, 0, expected)
    assert model.n_steps_ == pytest.approx(steps, abs=2)
    np.testing.assert_allclose(model.weights_, expected, atol=2e-3 * np.abs(start).max())


def test_a_batch_gives_each_problem_what_it_gets_alone(problem):
    X, y = problem
    problems = [(X, y, None), (X[:20], y[:20], None), (X, y[::-1].copy(), None)]
    for together, (a, b, _), seed in zip(
        Pearson().fit_many(problems, seeds=[0, 1, 2]), problems, range(3), strict=True
    ):
        alone = Pearson(seed=seed).fit(a, b)
        np.testing.assert_allclose(together.weights_, alone.weights_, rtol=1e-4, atol=1e-5)


def test_given_time_the_correlation_of_pearson_is_that_of_least_squares(problem):
    X, y = problem
    model = Pearson(sum_to_one=False, initial_std=0.1, max_steps=5000, patience=5000).fit(X, y)
    judge = LinearRegression().fit(X, y)
    np.testing.assert_allclose(model.predict(X), judge.predict(X), atol=2e-3)
    np.testing.assert_allclose(model.coef_, judge.coef_, atol=3e-3)


def test_a_metric_without_spread_gets_no_weight(problem):
    X, y = problem
    X = X.copy()
    X[:, 2] = 0.0
    for settings in ({}, PUBLISHED_L1):
        assert Pearson(**settings).fit(X, y).coef_[2] == 0
    assert Lasso().fit(X, y).coef_[2] == 0
