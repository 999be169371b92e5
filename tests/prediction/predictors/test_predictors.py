"""Each predictor against an independent solution."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import ElasticNetCV, LinearRegression, Ridge
from sklearn.linear_model import Lasso as SklearnLasso
from sklearn.utils.estimator_checks import parametrize_with_checks

from mergeability.errors import UserError
from mergeability.prediction import (
    MLP,
    Additive,
    AdditiveProbe,
    BackwardElimination,
    Dyadic,
    ElasticNet,
    ForwardSelection,
    Functional,
    Known,
    Lasso,
    Pearson,
    Trees,
)
from mergeability.prediction import Ridge as OurRidge
from mergeability.prediction.predictors import mlp
from mergeability.prediction.predictors.pearson import correlation_and_slope
from mergeability.prediction.predictors.scaling import RangeScaler

PUBLISHED_L1 = {
    "penalty": 1.0,
    "initial_std": 0.1,
    "sum_to_one": False,
    "max_steps": 2000,
    "patience": 100,
    "tolerance": 1e-5,
    "cutoff": 1e-3,
}


@parametrize_with_checks(
    [
        Additive(),
        AdditiveProbe(),
        BackwardElimination(),
        Dyadic(strengths=(1,)),  # of several, one fit without inner folds takes the largest
        ElasticNet(strengths=4),
        ForwardSelection(),
        Functional(strengths=(1,)),
        Known(strengths=(1,)),
        Lasso(strengths=4),
        MLP(hidden=4, epochs=20, learning_rate=0.03, dropout=0.1),
        Pearson(max_steps=40, learning_rate=0.1),
        RangeScaler(),
        OurRidge(strengths=(1,)),
        Trees(trees=4),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    _run_check(estimator, check)


@pytest.mark.slow
@parametrize_with_checks([ElasticNet(), Lasso(), MLP(), Pearson(), OurRidge(), Trees()])
def test_scikit_learns_own_checks_at_default_settings(estimator, check):
    _run_check(estimator, check)


def _run_check(estimator, check):
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
    X, y = problem[0], problem[1] + 0.1 * np.random.default_rng(1).normal(size=50)
    # No complements of each other, as where two tasks are left out.
    folds = [(np.arange(14), np.arange(25, 50)), (np.arange(20, 34), np.arange(18))]
    model = Lasso(strengths=6, tolerance=1e-8).fit(X, y, folds=folds)
    largest = np.abs((X - X.mean(0)).T @ (y - y.mean())).max() / len(y)
    grid = largest * 0.01 ** (np.arange(6) / 5)

    def best(training_rows):
        errors = np.zeros(6)
        for training, (_, out) in zip(training_rows, folds, strict=True):
            fits = [
                SklearnLasso(alpha=strength, tol=1e-10).fit(X[training], y[training]) for strength in grid
            ]
            errors += [np.mean((fit.predict(X[out]) - y[out]) ** 2) for fit in fits]
        return grid[np.argmin(errors)]

    assert model.strength_ == pytest.approx(best([training for training, _ in folds]))
    assert best([np.arange(50)] * 2) < model.strength_, "rows it is judged by must not have been fitted"


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
        Pearson(max_steps=200).fit_many(problems, seeds=[0, 1, 2]), problems, range(3), strict=True
    ):
        alone = Pearson(max_steps=200, seed=seed).fit(a, b)
        np.testing.assert_allclose(together.weights_, alone.weights_, rtol=1e-4, atol=1e-5)


def test_given_time_the_correlation_of_pearson_is_that_of_least_squares(problem):
    X, y = problem
    model = Pearson(sum_to_one=False, initial_std=0.1, max_steps=1000, patience=1000).fit(X, y)
    judge = LinearRegression().fit(X, y)
    np.testing.assert_allclose(model.predict(X), judge.predict(X), atol=1e-6)
    np.testing.assert_allclose(model.coef_, judge.coef_, atol=1e-6)


def test_given_time_pearson_points_where_least_squares_points(problem):
    """-r and the squared error have one optimum direction."""
    X, y = problem
    model = Pearson(sum_to_one=False, learning_rate=0.1, max_steps=1500, patience=1500)
    pearson = model.fit(X, y).weights_
    ols = LinearRegression().fit(X, y).coef_
    cosine = pearson @ ols / np.linalg.norm(pearson) / np.linalg.norm(ols)
    assert cosine == pytest.approx(1, abs=1e-9)


def test_a_metric_without_spread_gets_no_weight(problem):
    X, y = problem
    X = X.copy()
    X[:, 2] = 0.0
    for settings in ({}, PUBLISHED_L1):
        assert Pearson(**(settings | {"max_steps": 100})).fit(X, y).coef_[2] == 0
    assert Lasso().fit(X, y).coef_[2] == 0


def test_elastic_net_solves_the_problem_at_the_strength_it_chose(problem):
    X, y = problem
    model = ElasticNet(0.3, tolerance=1e-10).fit(X, y)
    # On the standardised outcome scikit-learn's two penalties have the one strength.
    judge = SklearnElasticNet(alpha=model.strength_ / y.std(), l1_ratio=0.3, tol=1e-12).fit(X, y / y.std())
    np.testing.assert_allclose(model.coef_, judge.coef_ * y.std(), atol=1e-5)


def test_elastic_net_does_not_care_about_the_outcomes_units(problem):
    X, y = problem
    one, hundred = ElasticNet().fit(X, y), ElasticNet().fit(X, 100 * y)
    np.testing.assert_allclose(hundred.coef_, 100 * one.coef_, rtol=1e-9)
    assert hundred.strength_ == pytest.approx(100 * one.strength_)


def test_elastic_nets_largest_strength_is_the_smallest_that_selects_nothing(problem):
    X, y = problem
    largest = ElasticNet(0.3, strengths=1).fit(X, y)
    np.testing.assert_allclose(largest.coef_, 0, atol=1e-12)
    below = SklearnElasticNet(tol=1e-12, alpha=0.99 * largest.strength_ / y.std(), l1_ratio=0.3).fit(
        X, y / y.std()
    )
    assert np.count_nonzero(below.coef_) == 1


def test_elastic_net_of_ratio_one_is_the_lasso(problem):
    np.testing.assert_array_equal(ElasticNet(1.0).fit(*problem).coef_, Lasso().fit(*problem).coef_)


@pytest.mark.parametrize("settings", [{"l1_ratio": 0}, {"l1_ratio": 1.1}, {"strengths": 0}, {"smallest": 0}])
def test_elastic_net_refuses_settings_without_a_grid(problem, settings):
    with pytest.raises(UserError, match="ElasticNet requires"):
        ElasticNet(**settings).fit(*problem)


def _training_r(X, y, columns):
    """Correlate a fresh least-squares fit on some columns with y; 0 for none."""
    design = np.column_stack([np.ones(len(y)), X[:, columns]])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return np.corrcoef(fitted, y)[0, 1] if len(columns) else 0.0


def _eliminated(X, y, tolerance):
    kept = list(range(X.shape[1]))
    while kept:
        without = [_training_r(X, y, [c for c in kept if c != column]) for column in kept]
        if _training_r(X, y, kept) - max(without) > tolerance:
            break
        kept.pop(int(np.argmax(without)))
    return kept


def _selected(X, y, tolerance):
    taken: list[int] = []
    while len(taken) < X.shape[1]:
        others = [column for column in range(X.shape[1]) if column not in taken]
        with_it = [_training_r(X, y, [*taken, column]) for column in others]
        if max(with_it) - _training_r(X, y, taken) < tolerance:
            break
        taken.append(others[int(np.argmax(with_it))])
    return sorted(taken)


@pytest.mark.parametrize(
    ("selector", "brute_force"), [(BackwardElimination, _eliminated), (ForwardSelection, _selected)]
)
@pytest.mark.parametrize("tolerance", [0.001, 0.01, 0.1, 0.9999])
@pytest.mark.parametrize("seed", range(3))
def test_stepwise_selection_is_that_of_a_loop_over_fits(selector, brute_force, tolerance, seed):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(40, 10)) @ generator.normal(size=(10, 10)) * 10.0 ** np.arange(-5, 5) + 3
    y = X @ (generator.normal(size=10) / X.std(axis=0)) + generator.normal(size=40)
    model = selector(tolerance).fit(X, y)
    expected = brute_force(X, y, tolerance)
    assert model.selected_.tolist() == expected
    design = np.column_stack([np.ones(40), X[:, expected]])
    np.testing.assert_allclose(model.predict(X), design @ np.linalg.lstsq(design, y, rcond=None)[0])
    assert not np.delete(model.coef_, expected).any()


@pytest.mark.parametrize("selector", [BackwardElimination, ForwardSelection])
def test_stepwise_selection_drops_what_other_metrics_say_already(problem, selector):
    X, y = problem
    # A constant, a copy, a complement and a sum, with the rounding of single precision.
    copies = [np.zeros(50), X[:, 0], 1 - X[:, 1], X[:, 0] + X[:, 2]]
    wide = np.column_stack([*copies, X]).astype(np.float32)
    for tolerance in (0, 0.001):
        model, judge = selector(tolerance).fit(wide, y), selector(tolerance).fit(X, y)
        assert np.linalg.matrix_rank(wide[:, model.selected_], tol=1e-4) == len(model.selected_)
        assert np.corrcoef(model.predict(wide), y)[0, 1] == pytest.approx(
            np.corrcoef(judge.predict(X), y)[0, 1], abs=0.002
        )
        assert np.abs(model.coef_).max() < 1, "collinear metrics must not play against each other"
    assert len(BackwardElimination(0).fit(wide, y).selected_) == 6


@pytest.mark.parametrize("selector", [BackwardElimination, ForwardSelection])
def test_stepwise_selection_copes_with_more_metrics_than_pairs(selector):
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(6, 20)), generator.normal(size=6)
    assert len(selector().fit(X, y).selected_) <= 5
    assert not selector().fit(X, np.full(6, 0.3)).coef_.any()
    with pytest.raises(UserError, match="at least 0"):
        selector(-1).fit(X, y)


def _torch_network(parameters):
    """The same network in torch, double precision."""
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).double()
    values = [np.squeeze(parameters[name]).T for name in ("into", "into_bias", "out", "out_bias")]
    with torch.no_grad():
        for place, value in zip(network.parameters(), values, strict=True):
            place.copy_(torch.tensor(value).reshape(place.shape))
    return network


def test_slopes_of_the_network_are_autograds_with_dropout_and_missing_rows(problem):
    X, y = problem
    generator = np.random.default_rng(0)
    parameters = {name: part[None] for name, part in MLP()._start(6, generator).items()}
    parameters = {name: part.astype(np.float64) for name, part in parameters.items()}
    present = np.arange(50) < 30
    masks = (generator.random((50, 8)) > 0.4) / 0.6
    network = _torch_network(parameters)
    hidden = torch.relu(network[0](torch.tensor(X))) * torch.tensor(masks)
    loss = ((network[2](hidden)[:30, 0] - torch.tensor(y)[:30]) ** 2).mean()
    loss.backward()
    ours = mlp.backward(parameters, X[None], y[None], present[None], masks[None])
    for name, judge in zip(("into", "into_bias", "out", "out_bias"), network.parameters(), strict=True):
        np.testing.assert_allclose(np.squeeze(ours[name]).T, np.squeeze(judge.grad.numpy()), atol=1e-12)


def test_mlp_takes_the_steps_of_torchs_adam(problem):
    X, y = problem
    settings = {"dropout": 0, "epochs": 60, "weight_decay": 0.1, "learning_rate": 0.01, "batch_size": 50}
    model = MLP(**settings, seed=3).fit(X, y)
    network = _torch_network(MLP()._start(6, np.random.default_rng(3)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=0.1)
    outcome = torch.tensor((y - y.mean()) / y.std())
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(torch.tensor(X))[:, 0], outcome).backward()
        optimizer.step()
    expected = network(torch.tensor(X))[:, 0].detach().numpy() * y.std() + y.mean()
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-4 * y.std())


def test_a_batch_of_networks_gives_each_problem_what_it_gets_alone(problem):
    X, y = problem
    # 50 rows take two steps an epoch, 20 and 32 only one.
    problems = [(X, y, None), (X[:20], y[:20], None), (X[:32], y[:32], None)]
    for together, (a, b, _), seed in zip(
        MLP(epochs=20).fit_many(problems, seeds=[0, 1, 2]), problems, range(3), strict=True
    ):
        alone = MLP(epochs=20, seed=seed).fit(a, b)
        np.testing.assert_allclose(together.predict(X), alone.predict(X), rtol=1e-5)


def test_mlp_learns_and_follows_its_seed(problem):
    X, y = problem
    short = {"epochs": 60, "learning_rate": 5e-3}
    first, again, other = (MLP(**short, seed=seed).fit(X, y).predict(X) for seed in (0, 0, 1))
    assert np.corrcoef(first, y)[0, 1] > 0.9
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_dropout_keeps_the_expected_unit_and_is_used(problem):
    counts = np.array([300, 200])
    generators = [np.random.default_rng(seed) for seed in (0, 1)]
    order, masks = MLP(dropout=0.4)._epoch(counts, generators)
    assert set(np.unique(masks[1, :200])) == {0, np.float32(1 / 0.6)}
    assert masks[0].mean() == pytest.approx(1, abs=0.1)
    assert sorted(order[1]) == [-1] * 100 + list(range(200))
    # In one batch the order of rows, which dropout shifts too, makes no difference.
    with_it, without = (
        MLP(dropout=rate, batch_size=50, epochs=60, learning_rate=5e-3).fit(*problem) for rate in (0.4, 0)
    )
    difference = with_it.predict(problem[0]) - without.predict(problem[0])
    assert np.abs(difference).max() > 0.1 * problem[1].std()


def test_mlp_refuses_settings_that_describe_no_network(problem):
    X, y = problem
    for nonsense in ({"hidden": 0}, {"dropout": 1}, {"batch_size": 0}, {"epochs": 0}):
        with pytest.raises(UserError, match="MLP requires"):
            MLP(**nonsense).fit(X, y)


def test_trees_are_scikit_learns(problem):
    X, y = problem
    judge = ExtraTreesRegressor(50, min_samples_leaf=3, random_state=1).fit(X, y)
    np.testing.assert_array_equal(Trees(trees=50, seed=1).fit(X, y).predict(X), judge.predict(X))


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_elastic_net_is_scikit_learns_cross_validated_one(problem, ratio):
    X, y = problem[0], problem[1] + 0.1 * np.random.default_rng(1).normal(size=50)
    folds = [(np.arange(14), np.arange(25, 50)), (np.arange(20, 34), np.arange(18))]
    model = ElasticNet(ratio, strengths=8, tolerance=1e-8).fit(X, y, folds)
    unit = y.std()
    centred, outcome = X - X.mean(axis=0), (y - y.mean()) / unit
    grid = np.abs(centred.T @ outcome).max() / 50 / ratio * np.geomspace(1, 0.01, 8)
    judge = ElasticNetCV(l1_ratio=ratio, alphas=grid, cv=folds, tol=1e-10, max_iter=100_000).fit(X, y / unit)
    assert grid.min() < judge.alpha_ < grid.max(), "there must have been something to choose"
    assert model.strength_ == pytest.approx(judge.alpha_ * unit)
    np.testing.assert_allclose(model.coef_, judge.coef_ * unit, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (Pearson, "penalty"),
        (Pearson, "initial_std"),
        (Pearson, "learning_rate"),
        (MLP, "weight_decay"),
        (MLP, "learning_rate"),
    ],
)
def test_a_setting_that_overflows_single_precision_is_refused(kind, option):
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = X @ [1.0, 0.1, 0.0]
    # Single precision ends at 3e38; warnings are errors here.
    with pytest.raises(UserError, match=f"overflows single precision.*{option}"):
        kind(**{option: 1e300}).fit(X, y).predict(X)
    assert np.isfinite(kind(**{option: 1e4}).fit(X, y).predict(X)).all()


def test_squares_that_overflow_are_refused_although_the_gradient_does_not():
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(UserError, match="overflows single precision"):
        Pearson(penalty=1e30).fit(X, X[:, 0])
