"""Task effects alone: the baseline that every metric has to beat."""

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
    """Predict y = μ + u_a + u_b from who is in the pair, ridge on the task effects u, no metric at all.

    A task that no training pair contains has effect 0, so for a held-out task only the partner speaks, and for
    two of them the training mean. `coef_` holds the effects u in outcome units, `intercept_` μ. The strength is
    given, or chosen of `strengths` by inner folds.
    """

    inputs: ClassVar[str] = "tasks"
    closed_form: ClassVar[bool] = True

    def __init__(
        self, strength: NotNegative | None = None, strengths: Sequence[NotNegative] = STRENGTHS
    ) -> None:
        self.strength = strength
        self.strengths = strengths

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None) -> "Additive":
        """Minimise ‖y - μ - Xu‖² + strength ‖u‖² on incidence columns X."""
        X, y = training_arrays(self, X, y)
        return self._take(solve_ridge([(X, y, folds)], self._checked_strengths())[0])

    def fit_many(self, problems: Sequence[Problem]) -> list["Additive"]:
        """Fit one regressor per problem; those that share their rows are solved together."""
        fitted = solve_ridge(problems, self._checked_strengths())
        return [type(self)(**self.get_params())._take(one) for one in fitted]

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Add up μ and the effects of the two tasks, in outcome units."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _checked_strengths(self) -> Sequence[float | int]:
        if self.strength is not None and not self.strength > 0:
            raise UserError(f"The strength of additive must be positive, not {self.strength}.")
        return self.strengths if self.strength is None else (self.strength,)

    def _take(self, fitted: LinearFit) -> "Additive":
        self.n_features_in_ = len(fitted.weights)
        self.coef_, self.intercept_, self.strength_ = fitted.weights, fitted.intercept, fitted.strength
        return self
