"""Fit least squares with an L1 and an L2 penalty; inner cross-validation chooses the strength of the penalties."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from sklearn import config_context
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from mergeability.checks import Count, NotNegative, Positive
from mergeability.errors import UserError
from mergeability.prediction.predictors.arrays import InnerFold, Rows, Values, new_rows, training_arrays

logger = logging.getLogger(__name__)


class ElasticNet(RegressorMixin, BaseEstimator):
    """Minimise ‖y - a - Xw‖² / 2n + s (q ‖w‖₁ + (1 - q) ‖w‖² / 2σ); inner cross-validation chooses s.

    The standard deviation σ of y makes the choice independent of the outcome's units. The candidates for s are spaced
    logarithmically from the smallest strength that selects no metric down to `smallest` times that; the one with the
    least mean squared error over the inner folds is chosen. Metrics are expected already scaled, by their ranges in
    the training rows. Inner leave-one-task-out makes one fold per task, so each pair is in two of them.

    Source: Zou and Hastie, "Regularization and variable selection via the elastic net", 2005.

    Args:
        l1_ratio: q, in (0, 1]; 1 is the lasso.
        strengths: number of candidates for s.
        smallest: the smallest candidate, as a share of the largest, in (0, 1].
        tolerance: tolerance of the coordinate descent of scikit-learn.
        max_sweeps: most passes over the coordinates.

    Attributes:
        coef_: the weights w, in outcome units.
        intercept_: a, in outcome units.
        strength_: the chosen s, in outcome units.

    Examples:
        >>> from mergeability.prediction import ElasticNet
        >>> X = [[-1.0, 0.2], [-0.6, -0.5], [-0.2, 0.9], [0.2, -0.9], [0.6, 0.5], [1.0, -0.2]]
        >>> model = ElasticNet().fit(X, [0.57, 0.58, 0.80, 0.70, 0.92, 0.93])
        >>> model.coef_.round(1).tolist(), round(model.intercept_, 2)
        ([0.2, 0.1], 0.75)
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(
        self,
        l1_ratio: float | int = 0.5,
        strengths: Count = 12,
        smallest: Positive = 1e-2,
        tolerance: NotNegative = 1e-3,
        max_sweeps: Count = 10_000,
    ) -> None:
        self.l1_ratio = l1_ratio
        self.strengths = strengths
        self.smallest = smallest
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None) -> "ElasticNet":
        """Choose the strength of the penalty by inner cross-validation, then fit the predictor to all rows.

        Args:
            X: metrics, (n, m).
            y: n outcomes.
            folds: inner folds that choose the strength; five interleaved ones when None.

        Returns:
            The fitted predictor.

        Raises:
            UserError: the settings do not define a grid of strengths.
        """
        self._check_settings()
        X, y = training_arrays(self, X, y)
        folds = interleaved_folds(len(y)) if folds is None else folds
        # Scaled to unit variance, so that `tolerance` means the same for every outcome.
        unit = float(y.std()) or 1.0
        outcome = y / unit
        grid = self._grid(X, outcome)
        errors = [self._fold_errors(X, outcome, *fold, grid) for fold in folds]
        best = int(np.argmin(np.mean(errors, axis=0))) if errors else 0
        self.strength_ = float(grid[best] * unit)
        # Solve along the path up to the chosen strength, because warm starts are faster than one cold start.
        weights, converged = self._path(X, outcome, grid[: best + 1])
        if not converged:
            logger.warning(
                "%s stopped after %d sweeps; its coefficients are approximate.",
                type(self).__name__,
                self.max_sweeps,
            )
        self.coef_ = weights[:, -1] * unit
        self.intercept_ = float(y.mean() - X.mean(axis=0) @ self.coef_)
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the predictions, intercept + Xw, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _check_settings(self) -> None:
        name = type(self).__name__
        if self.strengths < 1 or not 0 < self.smallest <= 1:
            raise UserError(
                f"{name} requires strengths >= 1 and 0 < smallest <= 1, got strengths={self.strengths} and"
                f" smallest={self.smallest}."
            )
        if not 0 < self.l1_ratio <= 1:
            raise UserError(
                f"{name} requires 0 < l1_ratio <= 1, got {self.l1_ratio}. Without an L1 penalty, use ridge."
            )

    def _grid(
        self, X: Float[np.ndarray, "n m"], y: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " strengths"]:
        # The smallest strength at which all weights are 0, from the optimality conditions of the L1 penalty.
        largest = float(np.abs((X - X.mean(axis=0)).T @ (y - y.mean())).max() / len(y) / self.l1_ratio)
        # If no metric correlates with y, every strength gives w = 0, but the solver requires a positive one.
        return (largest or 1.0) * np.geomspace(1.0, self.smallest, self.strengths)

    def _fold_errors(
        self,
        X: Float[np.ndarray, "n m"],
        y: Float[np.ndarray, " n"],
        training: Int[np.ndarray, " training"],
        validation: Int[np.ndarray, " validation"],
        grid: Float[np.ndarray, " strengths"],
    ) -> Float[np.ndarray, " strengths"]:
        # An approximate solution suffices to choose a strength, so convergence is not checked here.
        weights, _ = self._path(X[training], y[training], grid)
        predicted = y[training].mean() + (X[validation] - X[training].mean(axis=0)) @ weights
        return ((predicted - y[validation, None]) ** 2).mean(axis=0)

    def _path(
        self, X: Float[np.ndarray, "n m"], y: Float[np.ndarray, " n"], grid: Float[np.ndarray, " strengths"]
    ) -> tuple[Float[np.ndarray, "m strengths"], bool]:
        """Solve for falling strengths, each starting from the last; tell whether all converged."""
        X, y = X - X.mean(axis=0), y - y.mean()
        # Skip input checks, which for hundreds of small problems take as long as the solver.
        with (
            config_context(assume_finite=True, skip_parameter_validation=True),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", ConvergenceWarning)
            solve: Any = enet_path  # type checkers infer from its default that `precompute` is text
            _, weights, _ = solve(
                X,
                y,
                l1_ratio=self.l1_ratio,
                alphas=grid,
                precompute=X.T @ X,
                Xy=X.T @ y,
                tol=self.tolerance,
                max_iter=self.max_sweeps,
                check_input=False,
            )
        return weights, not caught


def interleaved_folds(n: int, count: int = 5) -> list[InnerFold]:
    """Create five folds for rows whose tasks are unknown; each fold validates on every fifth row.

    Args:
        n: number of rows; fewer than two allow no fold.
        count: number of folds.

    Returns:
        Training and validation rows of each fold.
    """
    if n < 2:
        return []
    count = min(count, n)
    rows = np.arange(n)
    return [(rows[rows % count != first], rows[rows % count == first]) for first in range(count)]
