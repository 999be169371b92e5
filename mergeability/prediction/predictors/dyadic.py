"""Fit task effects by ridge regression, then fit the residuals by ridge regression on metrics."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import NotNegative, Number
from mergeability.errors import UserError
from mergeability.prediction.predictors.arrays import (
    InnerFold,
    Problem,
    Rows,
    Values,
    new_rows,
    training_arrays,
)
from mergeability.prediction.predictors.moments import Sums
from mergeability.prediction.predictors.ridge import (
    LinearFit,
    best_strengths,
    checked_strengths,
    fit_together,
    ridge_weights,
    validated,
)

STRENGTHS = (10, 30, 100, 300, 1000, float("inf"))


class Dyadic(RegressorMixin, BaseEstimator):
    """Predict y = μ + u_a + u_b + (x - e_a - e_b)·w: u are task effects on the outcome, e on the metrics x.

    The effects u of the outcome and e of the metrics are ridge estimates of strength `task_strength` on incidence
    columns. The residuals of the outcome are regressed on the residuals of the metrics with strength s, chosen by
    `best_strengths` within the inner folds. With infinite s, and without inner folds, the model is that of `Additive`.
    A task without a training pair has effect 0, for the outcome and for the metrics.

    Args:
        task_strength: strength of the ridge on task effects, above 0.
        strengths: candidates for s.

    Attributes:
        coef_: weights of the metrics, then of the incidence columns, for unadjusted X.
        intercept_: in outcome units.
        metric_strength_: the chosen s.

    Examples:
        >>> import numpy as np
        >>> from mergeability.prediction import Dyadic, LeaveOneTaskOut
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.prediction.pair_table import incidence
        >>> pairs = example_pairs()
        >>> ends = pairs[["task_a", "task_b"]].to_numpy()
        >>> tasks = sorted(set(ends.ravel()))
        >>> X = np.hstack([pairs[["cosine"]], incidence(ends, tasks)])
        >>> folds = list(LeaveOneTaskOut().split(X, groups=ends))
        >>> model = Dyadic(strengths=(0.1, 1, float("inf")))
        >>> model = model.fit(X, pairs["norm_acc_ties"], folds, tasks=len(tasks))
        >>> model.metric_strength_, model.coef_.round(3).tolist()
        (0.1, [0.044, -0.025, -0.004, 0.024, 0.002, 0.018, -0.015])
    """

    inputs: ClassVar[str] = "both"
    closed_form: ClassVar[bool] = True

    def __init__(self, task_strength: NotNegative = 0.1, strengths: Sequence[Number] = STRENGTHS) -> None:
        self.task_strength = task_strength
        self.strengths = strengths

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None, tasks: int = 0) -> "Dyadic":
        """Choose the strength of the penalty by inner cross-validation, then fit the predictor to all rows.

        Args:
            X: metrics, then incidence columns, (n, m + T).
            y: n outcomes.
            folds: inner folds that choose the strength; the largest candidate is used if there are none.
            tasks: T, the number of incidence columns at the end.

        Returns:
            The fitted predictor.

        Raises:
            UserError: there are fewer columns than `tasks`, or a strength is not positive.
        """
        X, y = training_arrays(self, X, y)
        if not 0 <= tasks <= X.shape[1]:
            raise UserError(
                f"Expected tasks=… to be between 0 and the number of columns, {X.shape[1]}, got {tasks}."
            )
        return self._take(self._solve([(X, y, folds)], tasks)[0])

    def fit_many(self, problems: Sequence[Problem], tasks: int = 0) -> list["Dyadic"]:
        """Fit one regressor per regression problem; problems with the same training rows are solved together."""
        return [type(self)(**self.get_params())._take(one) for one in self._solve(problems, tasks)]

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the task effects plus what the metrics contribute in addition, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _take(self, fitted: LinearFit) -> "Dyadic":
        self.n_features_in_ = len(fitted.weights)
        self.coef_, self.intercept_ = fitted.weights, fitted.intercept
        self.metric_strength_ = fitted.strength
        return self

    def _solve(self, problems: Sequence[Problem], tasks: int) -> list[LinearFit]:
        if not self.task_strength > 0:
            raise UserError(
                f"Expected a positive task_strength for the predictor dyadic, got {self.task_strength}."
            )
        strengths = checked_strengths(self.strengths, "dyadic")

        def solve(moments: Sums) -> Float[np.ndarray, "F S q K"]:
            return self._weights(moments, strengths, tasks)

        def choose(
            X: Float[np.ndarray, "n q"], Y: Float[np.ndarray, "n K"], folds: Sequence[InnerFold]
        ) -> Int[np.ndarray, " K"] | None:
            return best_strengths(validated(X, Y, folds, solve), len(strengths), within=True)

        return fit_together(problems, strengths, solve, choose, otherwise=len(strengths) - 1)

    def _weights(
        self, moments: Sums, strengths: Float[np.ndarray, " S"], tasks: int
    ) -> Float[np.ndarray, "F S q K"]:
        """Solve both stages using only sums of products.

        With J the incidence columns, effects of the metrics A = (JᵀJ + λI)⁻¹JᵀX and of the outcome
        u = (JᵀJ + λI)⁻¹Jᵀy. For the residuals E = X - JA and e = y - Ju, the sums EᵀE and Eᵀe can be computed without
        the rows.
        """
        metrics = moments.gram.shape[1] - tasks
        xx, xj = moments.gram[:, :metrics, :metrics], moments.gram[:, :metrics, metrics:]
        jj = moments.gram[:, metrics:, metrics:]
        xy, jy = moments.cross[:, :metrics], moments.cross[:, metrics:]
        # Metrics and outcomes share the incidence columns, so one solve gives the effects of both.
        both = np.concatenate([xj.mT, jy], axis=2)
        effects = np.linalg.solve(jj + self.task_strength * np.eye(tasks), both)
        of_metrics, of_outcome = effects[..., :metrics], effects[..., metrics:]
        left = xx - xj @ of_metrics - of_metrics.mT @ xj.mT + of_metrics.mT @ jj @ of_metrics
        left_cross = xy - xj @ of_outcome - of_metrics.mT @ jy + of_metrics.mT @ jj @ of_outcome
        # Symmetrised, because eigh reads only one triangle and rounding makes the two differ.
        weights = ridge_weights((left + left.mT) / 2, left_cross, strengths)
        # Weights for unadjusted metrics: (x − Ja)·w + Ju = x·w + J(u − aw).
        of_tasks = of_outcome[:, None] - of_metrics[:, None] @ weights
        return np.concatenate([weights, of_tasks], axis=2)
