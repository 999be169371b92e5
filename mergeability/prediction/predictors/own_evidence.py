"""Predictors that use a few named columns of the table instead of its metrics.

Twenty-eight noisy metrics in one ridge drown a good one; so what is known of each model alone, what models answer on
unlabelled images, and probes of the merge itself are each studied beside the metrics, not among them.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import NotNegative
from mergeability.prediction.predictors.arrays import Rows, Values, new_rows, training_arrays
from mergeability.prediction.predictors.dyadic import Dyadic
from mergeability.prediction.predictors.ridge import Ridge

STRENGTHS = (1, 3, 10, 30, 100, 300, 1000)
ZERO_SHOT_RATIO = "zero_shot_ratio"
"""The column with the mean of both tasks' base accuracy over fine-tuned accuracy, where labels give them."""
# Least squares, and still 0 where the probe does not vary.
_NEXT_TO_NONE = 1e-9


class Known(Ridge):
    """Ridge on per-model evidence: how well the base already does the task.

    The mean over the pair of base accuracy over fine-tuned accuracy, or, where not all pairs have it, the base's
    agreement with the fine-tuned models on unlabelled images. A baseline: it knows nothing of the pair.
    """

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that it looks at: the first of these that all pairs have."""
        return [(ZERO_SHOT_RATIO,), ("base_agreement",)]


class Functional(Ridge):
    """Ridge on two functional metrics: `base_agreement`, and of the mean of features the overlap (target `norm_acc`)
    or the confidence (target `acc`). A forecast without any merge and without labels.
    """  # noqa: D205

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that it looks at."""
        return [("base_agreement", "ensemble_confidence" if target == "acc" else "ensemble_overlap")]


class Probe(RegressorMixin, BaseEstimator):
    """Predict an outcome by the probe of the very merge: its overlap for `norm_acc`, its confidence for `acc`.

    The prediction is the column (the mean of several): nothing is fitted, and no other pair is needed.
    """

    inputs: ClassVar[str] = "raw"
    closed_form: ClassVar[bool] = True

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that it looks at."""
        return [probe_columns(target, method)]

    def fit(self, X: Rows, y: Values) -> "Probe":
        """Remember the number of columns."""
        training_arrays(self, X, y)
        self.fitted_ = True
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the probe, in outcome units."""
        return new_rows(self, X).mean(axis=1)


class AdditiveProbe(Dyadic):
    """Predict y = μ + u_a + u_b + β (p - e_a - e_b): task effects, and the probe p for what they leave.

    The effects u of the outcome and e of the probe are ridge estimates of strength `task_strength`; β is the least
    squares solution for what both leave. For a new model with a partner that was merged before.
    """

    def __init__(
        self, task_strength: NotNegative = 0.1, strengths: Sequence[float | int] = (_NEXT_TO_NONE,)
    ) -> None:
        super().__init__(task_strength, strengths)

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that it looks at."""
        return [probe_columns(target, method)]


def probe_columns(target: str, method: str) -> tuple[str, ...]:
    """Return the column of a merge's probe that estimates a target."""
    return (f"probe_{'confidence' if target == 'acc' else 'overlap'}_{method}",)


def own_columns(predictor: object, target: str, method: str) -> list[tuple[str, ...]]:
    """List the alternatives of columns that a predictor looks at instead of the metrics; none for most predictors."""
    columns = getattr(predictor, "columns", None)
    return [] if columns is None else list(columns(target, method))
