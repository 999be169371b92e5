"""Least squares with an L1 penalty whose strength is chosen without the held-out task."""

import logging
import warnings
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from sklearn import config_context
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lasso_path

from mergeability.errors import UserError
from mergeability.prediction.arrays import Rows, Values, new_rows, training_arrays

logger = logging.getLogger(__name__)


class Lasso(RegressorMixin, BaseEstimator):
    """Minimise ‖y - a - Xw‖² / 2n + s ‖w‖₁, the strength s chosen by inner folds of the training rows.

    `folds` marks the rows that each inner fold leaves out; leave-one-task-out gives one fold a task, a pair
    being in two of them. The strength with the least mean squared error over the inner folds wins, of
    `strengths` logarithmic steps from the smallest one that selects nothing down to `smallest` times that.
    The metrics come in already scaled, by the ranges of the whole training fold. Tibshirani, 1996.
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(
        self,
        strengths: int = 12,
        smallest: float | int = 1e-2,
        tolerance: float | int = 1e-3,
        max_sweeps: int = 10_000,
    ) -> None:
        self.strengths = strengths
        self.smallest = smallest
        self.tolerance = tolerance
        self.max_sweeps = max_sweeps

    def fit(
        self,
        X: Rows,
        y: Values,
        folds: Bool[np.ndarray, "folds n"] | None = None,
    ) -> "Lasso":
        """Choose the strength on the inner folds (five interleaved ones by default) and refit all rows."""
        if self.strengths < 1 or not 0 < self.smallest <= 1:
            raise UserError(
                "Lasso needs strengths >= 1 and 0 < smallest <= 1, "
                f"not strengths={self.strengths} and smallest={self.smallest}."
            )
        X, y = training_arrays(self, X, y)
        folds = _interleaved(len(y)) if folds is None else folds
        unit = float(y.std()) or 1.0  # so that `tolerance` means the same for every outcome
        outcome = y / unit
        grid = self._grid(X, outcome)
        errors = [self._fold_errors(X, outcome, left_out, grid) for left_out in folds]
        best = int(np.argmin(np.mean(errors, axis=0))) if errors else 0
        self.strength_ = float(grid[best] * unit)
        weights, converged = self._path(X, outcome, grid[: best + 1])
        if not converged:
            logger.warning(
                "Lasso stopped after %d sweeps; its coefficients are approximate.", self.max_sweeps
            )
        self.coef_ = weights[:, -1] * unit
        self.intercept_ = float(y.mean() - X.mean(axis=0) @ self.coef_)
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Evaluate a + Xw, in outcome units."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _grid(
        self, X: Float[np.ndarray, "n m"], y: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, " strengths"]:
        largest = float(np.abs((X - X.mean(axis=0)).T @ (y - y.mean())).max() / len(y))
        # Where nothing correlates with y any strength gives w = 0, but the solver wants a positive one.
        return (largest or 1.0) * np.geomspace(1.0, self.smallest, self.strengths)

    def _fold_errors(
        self,
        X: Float[np.ndarray, "n m"],
        y: Float[np.ndarray, " n"],
        left_out: Bool[np.ndarray, " n"],
        grid: Float[np.ndarray, " strengths"],
    ) -> Float[np.ndarray, " strengths"]:
        kept = ~left_out
        # Roughly solved is good enough to choose a strength, so convergence is not asked for here.
        weights, _ = self._path(X[kept], y[kept], grid)
        predicted = y[kept].mean() + (X[left_out] - X[kept].mean(axis=0)) @ weights
        return ((predicted - y[left_out, None]) ** 2).mean(axis=0)

    def _path(
        self, X: Float[np.ndarray, "n m"], y: Float[np.ndarray, " n"], grid: Float[np.ndarray, " strengths"]
    ) -> tuple[Float[np.ndarray, "m strengths"], bool]:
        """Solve for falling strengths, each starting from the last; tell whether all converged."""
        X, y = X - X.mean(axis=0), y - y.mean()
        # Hundreds of small problems: checking each again costs as much as solving it.
        with (
            config_context(assume_finite=True, skip_parameter_validation=True),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", ConvergenceWarning)
            solve: Any = lasso_path  # typed by its defaults, as if `precompute` were text only
            _, weights, _ = solve(
                X,
                y,
                alphas=grid,
                precompute=X.T @ X,
                Xy=X.T @ y,
                tol=self.tolerance,
                max_iter=self.max_sweeps,
                check_input=False,
            )
        return weights, not caught


def _interleaved(n: int, count: int = 5) -> Bool[np.ndarray, "folds n"]:
    """Mark every fifth row, starting from each of the first five: folds for rows whose tasks are unknown."""
    if n < 2:
        return np.zeros((0, n), dtype=bool)
    count = min(count, n)
    return np.arange(n) % count == np.arange(count)[:, None]
