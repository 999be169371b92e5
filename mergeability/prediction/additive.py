"""Task effects alone: the baseline that every metric has to beat."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.errors import UserError
from mergeability.prediction.arrays import Rows, Values, new_rows, training_arrays


class Additive(RegressorMixin, BaseEstimator):
    """Predict y = μ + u_a + u_b from who is in the pair, ridge on the task effects u, no metric at all.

    A task that no training pair contains has effect 0, so for a held-out task only the partner speaks.
    `coef_` holds the effects u in outcome units, `intercept_` μ.
    """

    inputs: ClassVar[str] = "tasks"

    def __init__(self, strength: float | int = 0.1) -> None:
        self.strength = strength

    def fit(self, X: Rows, y: Values) -> "Additive":
        """Minimise ‖y - μ - Xu‖² + strength ‖u‖² on incidence columns X."""
        if not self.strength > 0:
            raise UserError(f"The strength of additive must be positive, not {self.strength}.")
        X, y = training_arrays(self, X, y)
        mean, centred = X.mean(axis=0), X - X.mean(axis=0)
        system = centred.T @ centred + self.strength * np.eye(X.shape[1])
        self.coef_ = np.linalg.solve(system, centred.T @ (y - y.mean()))
        self.intercept_ = float(y.mean() - mean @ self.coef_)
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Add up μ and the effects of the two tasks, in outcome units."""
        return new_rows(self, X) @ self.coef_ + self.intercept_
