"""Task effects alone: the baseline that every metric has to beat."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from mergeability.errors import UserError


class Additive(RegressorMixin, BaseEstimator):
    """Predict y = μ + u_a + u_b from who is in the pair, ridge on the task effects u, no metric at all.

    A task that no training pair contains has effect 0, so for a held-out task only the partner speaks.
    `coef_` holds the effects u in outcome units, `intercept_` μ.
    """

    inputs: ClassVar[str] = "tasks"

    def __init__(self, strength: float | int = 0.1) -> None:
        self.strength = strength

    def fit(self, X: Float[np.ndarray, "n T"], y: Float[np.ndarray, " n"]) -> "Additive":
        """Minimise ‖y - μ - Xu‖² + strength ‖u‖² on incidence columns X."""
        if not self.strength > 0:
            raise UserError(f"The strength of additive must be positive, not {self.strength}.")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        mean, centred = X.mean(axis=0), X - X.mean(axis=0)
        system = centred.T @ centred + self.strength * np.eye(X.shape[1])
        self.coef_ = np.linalg.solve(system, centred.T @ (y - y.mean()))
        self.intercept_ = float(y.mean() - mean @ self.coef_)
        return self

    def predict(self, X: Float[np.ndarray, "n T"]) -> Float[np.ndarray, " n"]:
        """Add up μ and the effects of the two tasks, in outcome units."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_ + self.intercept_
