"""Predict outcomes from task effects alone, as a baseline for predictors that use metrics."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import NotNegative
from mergeability.errors import UserError
from mergeability.prediction.predictors.arrays import (
    InnerFold,
    Problem,
    Rows,
    Values,
    new_rows,
    training_arrays,
)
from mergeability.prediction.predictors.ridge import LinearFit, solve_ridge

STRENGTHS = (0.01, 0.1, 1, 10)


class Additive(RegressorMixin, BaseEstimator):
    """Predict an outcome as y = μ + u_a + u_b, with task effects u estimated by ridge regression.

    It minimises ‖y - μ - Xu‖² + s ‖u‖², where X is the incidence matrix of pairs and tasks. A task without a training
    pair has effect 0: with one held-out task the prediction depends only on the partner, with two it is the training
    mean.

    Args:
        strength: the strength s > 0; chosen from `strengths` by inner folds when None.
        strengths: candidates for s.

    Attributes:
        coef_: the task effects u, in outcome units, one per task.
        intercept_: μ, in outcome units.
        strength_: the chosen s.

    Examples:
        >>> from mergeability.prediction import Additive
        >>> from mergeability.prediction.pair_table import incidence
        >>> tasks, pairs = ["a", "b", "c"], [("a", "b"), ("a", "c"), ("b", "c")]
        >>> model = Additive(strength=0.01).fit(incidence(pairs, tasks), [0.9, 0.7, 0.6])
        >>> model.coef_.round(2).tolist()
        [0.13, 0.03, -0.17]
        >>> model.predict(incidence([("a", "new")], tasks)).round(2).tolist()
        [0.87]
    """

    inputs: ClassVar[str] = "tasks"
    closed_form: ClassVar[bool] = True

    def __init__(
        self, strength: NotNegative | None = None, strengths: Sequence[NotNegative] = STRENGTHS
    ) -> None:
        self.strength = strength
        self.strengths = strengths

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None) -> "Additive":
        """Estimate μ and the task effects u from the incidence matrix X.

        Args:
            X: incidence matrix, (n, T).
            y: n outcomes.
            folds: inner folds that choose the strength; without folds, the middle candidate is used.

        Returns:
            The fitted predictor.

        Raises:
            UserError: a strength is not positive.
        """
        X, y = training_arrays(self, X, y)
        return self._take(solve_ridge([(X, y, folds)], self._checked_strengths())[0])

    def fit_many(self, problems: Sequence[Problem]) -> list["Additive"]:
        """Fit one regressor per problem (`Problem`); problems with the same training rows are solved together."""
        fitted = solve_ridge(problems, self._checked_strengths())
        return [type(self)(**self.get_params())._take(one) for one in fitted]

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return μ plus the effects of the two tasks, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _checked_strengths(self) -> Sequence[float | int]:
        if self.strength is not None and not self.strength > 0:
            raise UserError(
                f"Expected a positive penalty strength for the predictor 'additive', got {self.strength}."
            )
        return self.strengths if self.strength is None else (self.strength,)

    def _take(self, fitted: LinearFit) -> "Additive":
        self.n_features_in_ = len(fitted.weights)
        self.coef_, self.intercept_, self.strength_ = fitted.weights, fitted.intercept, fitted.strength
        return self
