"""Fit least squares on a subset of the metrics, for backward elimination and forward selection."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import NotNegative
from mergeability.errors import UserError
from mergeability.prediction.predictors.arrays import Rows, Values, new_rows, training_arrays

COLLINEAR = 1e-6
"""A column that the others explain but for this share of its length says nothing of its own.

Metrics are measured in single precision: what is left of an exact relation is rounding, at about 1e-7.
"""


class SubsetRegressor(RegressorMixin, BaseEstimator):
    """Fit least squares with an intercept on the columns that `_select` returns.

    Args:
        tolerance: the change of the training r that counts, at least 0.

    Attributes:
        selected_: indices of the chosen columns, in table order.
        coef_: weights, 0 for all other columns.
        intercept_: in outcome units.
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(self, tolerance: NotNegative = 1e-3) -> None:
        self.tolerance = tolerance

    def fit(self, X: Rows, y: Values) -> "SubsetRegressor":
        """Select columns on the training rows, and fit least squares on these columns.

        Args:
            X: metrics, (n, m).
            y: n outcomes.

        Returns:
            The fitted predictor.

        Raises:
            UserError: the tolerance is negative.
        """
        if not self.tolerance >= 0:
            raise UserError(
                f"Expected a tolerance of at least 0 for {type(self).__name__}, got {self.tolerance}."
            )
        X, y = training_arrays(self, X, y)
        columns, outcome = unit_columns(X), unit_columns(y[:, None])[:, 0]
        self.selected_: Int[np.ndarray, " selected"] = np.sort(self._select(columns, outcome))
        self.coef_ = np.zeros(X.shape[1])
        chosen = X[:, self.selected_] - X[:, self.selected_].mean(axis=0)
        self.coef_[self.selected_] = np.linalg.lstsq(chosen, y - y.mean(), rcond=None)[0]
        self.intercept_ = float(y.mean() - X.mean(axis=0) @ self.coef_)
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the predictions Xw plus the intercept, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    @abstractmethod
    def _select(
        self, columns: Float[np.ndarray, "n m"], outcome: Float[np.ndarray, " n"]
    ) -> Int[np.ndarray, " selected"]:
        """Choose columns, both sides given with mean 0 and length 1 (all 0 if constant)."""


def unit_columns(X: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Scale each column to mean 0 and length 1; columns that are constant up to rounding become 0."""
    centred = X - X.mean(axis=0)
    length = np.sqrt((centred**2).sum(axis=0))
    constant = length <= 1e-12 * np.sqrt((X**2).sum(axis=0))
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, length))


def without_direction(columns: Float[np.ndarray, "n m"], index: int) -> Float[np.ndarray, "n m"]:
    """Project every column onto the orthogonal complement of one column; that column itself becomes 0."""
    direction = columns[:, index] / np.sqrt(columns[:, index] @ columns[:, index])
    left = columns - np.outer(direction, direction @ columns)
    left[:, index] = 0.0
    return left
