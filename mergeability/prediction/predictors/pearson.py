"""Predict by the method of arXiv 2601.22285: maximise the correlation of a weighted sum of metrics with the outcome."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import Count, NotNegative, Positive, Seed
from mergeability.prediction.predictors.adam import EPSILON, Adam, refusing_overflow
from mergeability.prediction.predictors.arrays import Problem, Rows, Values, new_rows, training_arrays


class Pearson(RegressorMixin, BaseEstimator):
    """Minimise -r(Xw, y) + penalty ‖w‖₁ over w by Adam, with random initialisation and early stopping.

    A run stops after `patience` steps without a gain of more than `tolerance`; then weights with |w| < `cutoff` are
    set to 0. The score Xw has no scale, so the outcome is predicted as a + b Xw, with a and b by least squares on the
    training rows. Because r does not depend on the scale of w, the penalised objective has no minimiser with w ≠ 0:
    the result depends on the start, the step size and the patience. Defaults are the published unpenalised form.

    Source: arXiv 2601.22285.

    Args:
        penalty: weight of ‖w‖₁, at least 0.
        initial_std: standard deviation of the random start.
        sum_to_one: whether to rescale w to w / (Σw + 1e-8) before each step.
        learning_rate: step size of Adam.
        max_steps: most steps of a run.
        patience: steps without a gain after which a run stops.
        tolerance: the smallest change of the objective that counts as a gain.
        cutoff: weights below it in absolute value are set to 0.
        seed: seed of the random start.

    Attributes:
        weights_: w, one per metric.
        coef_: b w, in outcome units.
        intercept_: a, in outcome units.
        n_steps_: steps taken.

    Examples:
        >>> from mergeability.prediction import Pearson
        >>> from mergeability.prediction.examples import example_pairs
        >>> pairs = example_pairs()
        >>> model = Pearson().fit(pairs[["cosine", "distance"]].to_numpy(), pairs["norm_acc_ties"])
        >>> model.coef_.shape, bool(model.coef_[0] > 0), model.n_steps_ <= 1000
        ((2,), True, True)
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(
        self,
        penalty: NotNegative = 0.0,
        initial_std: Positive = 1.0,
        sum_to_one: bool = True,
        learning_rate: Positive = 0.01,
        max_steps: Count = 1000,
        patience: Count = 50,
        tolerance: NotNegative = 1e-4,
        cutoff: NotNegative = 0.0,
        seed: Seed = 0,
    ) -> None:
        self.penalty = penalty
        self.initial_std = initial_std
        self.sum_to_one = sum_to_one
        self.learning_rate = learning_rate
        self.max_steps = max_steps
        self.patience = patience
        self.tolerance = tolerance
        self.cutoff = cutoff
        self.seed = seed

    def fit(self, X: Rows, y: Values) -> "Pearson":
        """Fit the weights w from one random initialisation."""
        X, y = training_arrays(self, X, y)
        fitted = self.fit_many([(X, y, None)])[0]
        self.n_features_in_, self.n_steps_, self.weights_ = X.shape[1], fitted.n_steps_, fitted.weights_
        self.coef_, self.intercept_ = fitted.coef_, fitted.intercept_
        return self

    @refusing_overflow()
    def fit_many(self, problems: Sequence[Problem], seeds: Sequence[int] | None = None) -> list["Pearson"]:
        """Fit one regressor per problem, all of them as a single batched optimisation.

        Args:
            problems: X, y and an unused third entry for each fit.
            seeds: seeds of the random start of each problem; `seed` for all when None.

        Returns:
            One fitted predictor per problem.

        Raises:
            UserError: a number overflows.
        """
        seeds = [self.seed] * len(problems) if seeds is None else seeds
        covariances, covariations = _moments(problems)
        start = np.stack([self._start(covariations.shape[1], seed) for seed in seeds])
        # A constant column has no gradient, so set its weight to 0 instead of keeping its random start.
        start = np.where(np.diagonal(covariances, axis1=1, axis2=2) > 0, start, np.float32(0))
        weights, steps = self._maximise(covariances, covariations, start)
        weights = np.where(np.abs(weights) < self.cutoff, 0.0, weights.astype(np.float64))
        return [
            self._in_outcome_units(X, y, w, int(n))
            for (X, y, _), w, n in zip(problems, weights, steps, strict=True)
        ]

    @refusing_overflow()
    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the predictions, a + b Xw, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _start(self, count: int, seed: int) -> Float32[np.ndarray, " m"]:
        normal = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
        return np.float32(self.initial_std) * normal

    def _maximise(
        self,
        covariances: Float[np.ndarray, "runs m m"],
        covariations: Float[np.ndarray, "runs m"],
        start: Float32[np.ndarray, "runs m"],
    ) -> tuple[Float32[np.ndarray, "runs m"], Int[np.ndarray, " runs"]]:
        """Take Adam's steps in all runs until the last has stopped; a stopped run keeps its weights."""
        weights = start.copy()
        adam = Adam({"weights": weights}, self.learning_rate)
        best, waited = np.full(len(start), np.inf), np.zeros(len(start), dtype=int)
        steps, running = np.zeros(len(start), dtype=int), np.ones(len(start), dtype=bool)
        for _ in range(self.max_steps):
            if self.sum_to_one:
                weights[running] /= weights[running].sum(axis=1, keepdims=True) + np.float32(EPSILON)
            r, slope = correlation_and_slope(covariances, covariations, weights)
            loss = self.penalty * np.abs(weights).sum(axis=1) - r
            gradient = (self.penalty * np.sign(weights) - slope).astype(np.float32)
            adam.step({"weights": weights}, {"weights": gradient}, running)
            steps += running
            gained = loss < best - self.tolerance
            best, waited = np.where(gained, loss, best), np.where(gained, 0, waited + 1)
            running &= waited < self.patience
            if not running.any():
                break
        return weights, steps

    def _in_outcome_units(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray, steps: int) -> "Pearson":
        fitted = type(self)(**self.get_params())
        score = (X - X.mean(axis=0)) @ weights
        power = score @ score
        slope = float(score @ (y - y.mean()) / power) if power > 0 else 0.0
        fitted.n_features_in_ = X.shape[1]
        fitted.weights_, fitted.n_steps_ = weights, steps
        fitted.coef_ = slope * weights
        fitted.intercept_ = float(y.mean() - X.mean(axis=0) @ fitted.coef_)
        return fitted


def correlation_and_slope(
    covariances: Float[np.ndarray, "runs m m"],
    covariations: Float[np.ndarray, "runs m"],
    weights: Float[np.ndarray, "runs m"],
) -> tuple[Float[np.ndarray, " runs"], Float[np.ndarray, "runs m"]]:
    """Return the correlation r = w·c / (√(wᵀSw) + 1e-8) of Xw and y, in [-1, 1], and its gradient for each problem.

    S is the covariance of the metrics, c their covariance with the standardised outcome. Weights for which Xw is
    constant have r = 0 and gradient 0.

    Args:
        covariances: S of each run.
        covariations: c of each run.
        weights: w of each run.

    Returns:
        The correlations, and their gradients.
    """
    pull = np.matmul(covariances, weights[:, :, None])[:, :, 0]
    # Rounding can make the variance of collinear metrics negative.
    spread = np.sqrt(np.maximum((pull * weights).sum(axis=1), 0.0))
    spread_eps = (spread + EPSILON)[:, None]
    r = (weights * covariations).sum(axis=1) / spread_eps[:, 0]
    unit = np.divide(pull, spread[:, None], out=np.zeros_like(pull), where=spread[:, None] > 0)
    slope = (covariations - r[:, None] * unit) / spread_eps
    return r, np.where(spread[:, None] > 0, slope, 0.0)


def _moments(
    problems: Sequence[Problem],
) -> tuple[Float[np.ndarray, "runs m m"], Float[np.ndarray, "runs m"]]:
    """Reduce each problem to the moments that determine r, which do not grow with the number of rows.

    Kept in double precision, as metrics may be collinear; weights and Adam's moments are single.
    """
    covariances, covariations = [], []
    for X, y, _ in problems:
        X, y = X - X.mean(axis=0), y - y.mean()
        covariances.append(X.T @ X / len(y))
        covariations.append(X.T @ y / len(y) / (y.std() or 1.0))
    return np.stack(covariances), np.stack(covariations)
