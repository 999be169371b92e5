"""Predict from columns of the pair table that the predictor declares, instead of from the metrics.

A ridge regression on twenty-eight noisy metrics obscures a single good one. Evidence about each model alone,
functional metrics on unlabelled images and probes of the merge are therefore studied as separate predictors.
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
# Practically least squares, but the weight is 0 if the probe is constant.
_NEXT_TO_NONE = 1e-9


class Known(Ridge):
    """Predict by ridge regression from how well the base model alone solves the two tasks.

    The column is the mean over the pair of base accuracy divided by fine-tuned accuracy; if some pairs lack it, the
    base model's agreement with the fine-tuned models on unlabelled images. This is a baseline, since neither depends
    on how the two models relate. Arguments and attributes are those of `Ridge`.

    Examples:
        >>> from mergeability.prediction import Known
        >>> Known().columns("norm_acc", "ties")
        [('zero_shot_ratio',), ('base_agreement',)]
        >>> model = Known(strengths=(0.1,)).fit([[-1.0], [0.0], [1.0]], [0.7, 0.8, 0.9])
        >>> model.predict([[0.5]]).round(3).tolist()
        [0.848]
    """

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the sets of columns that the predictor can use; it uses the first that is complete for all pairs."""
        return [(ZERO_SHOT_RATIO,), ("base_agreement",)]


class Functional(Ridge):
    """Predict by ridge on two functional metrics, which need neither a merge nor labels.

    The columns are `base_agreement` and, from the models' mean image features, the overlap for target `norm_acc` or
    the confidence for target `acc`. Arguments and attributes are those of `Ridge`.

    Examples:
        >>> from mergeability.prediction import Functional
        >>> Functional().columns("norm_acc", "ties")
        [('base_agreement', 'ensemble_overlap')]
        >>> Functional().columns("acc", "ties")
        [('base_agreement', 'ensemble_confidence')]
    """

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that the predictor uses."""
        return [("base_agreement", "ensemble_confidence" if target == "acc" else "ensemble_overlap")]


class Probe(RegressorMixin, BaseEstimator):
    """Predict the outcome of a merge from the merge's probe: `norm_acc` from the overlap, `acc` from the confidence.

    A probe passes unlabelled images through the merge. The prediction is the probe's column itself (the mean of several
    columns): nothing is fitted, and no other pair is needed.

    Examples:
        >>> from mergeability.prediction import Probe
        >>> Probe().columns("norm_acc", "ties")
        [('probe_overlap_ties',)]
        >>> Probe().fit([[0.9], [0.8]], [0.85, 0.75]).predict([[0.7]]).tolist()
        [0.7]
    """

    inputs: ClassVar[str] = "raw"
    closed_form: ClassVar[bool] = True

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that the predictor uses."""
        return [probe_columns(target, method)]

    def fit(self, X: Rows, y: Values) -> "Probe":
        """Store the number of columns; nothing is fitted."""
        training_arrays(self, X, y)
        self.fitted_ = True
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the values of the probe's column, which are the predictions in units of the outcome."""
        return new_rows(self, X).mean(axis=1)


class AdditiveProbe(Dyadic):
    """Predict y = μ + u_a + u_b + β (p - e_a - e_b), with task effects u of the outcome and e of the probe p.

    The effects u of the outcome and e of the probe are ridge estimates of strength `task_strength`; β is the least
    squares solution for the residuals of both. Use it for a new model with a partner that was merged before.

    Args:
        task_strength: strength of the ridge on task effects, above 0.
        strengths: strengths of the ridge on the residuals; by default one so small that β is the least squares
            solution.

    Attributes:
        coef_: β, then the weights of the incidence columns.
        intercept_: in outcome units.

    Examples:
        >>> import numpy as np
        >>> from mergeability.prediction import AdditiveProbe
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.prediction.pair_table import incidence
        >>> AdditiveProbe().columns("norm_acc", "ties")
        [('probe_overlap_ties',)]
        >>> pairs = example_pairs()
        >>> ends = pairs[["task_a", "task_b"]].to_numpy()
        >>> tasks = sorted(set(ends.ravel()))
        >>> X = np.hstack([pairs[["cosine"]], incidence(ends, tasks)])
        >>> model = AdditiveProbe().fit(X, pairs["norm_acc_ties"], tasks=len(tasks))
        >>> round(float(model.coef_[0]), 3)
        0.048
    """

    def __init__(
        self, task_strength: NotNegative = 0.1, strengths: Sequence[float | int] = (_NEXT_TO_NONE,)
    ) -> None:
        super().__init__(task_strength, strengths)

    def columns(self, target: str, method: str) -> list[tuple[str, ...]]:
        """List the columns that the predictor uses."""
        return [probe_columns(target, method)]


def probe_columns(target: str, method: str) -> tuple[str, ...]:
    """Return the probe's column that contains estimates of a target for one merge method."""
    return (f"probe_{'confidence' if target == 'acc' else 'overlap'}_{method}",)


def own_columns(predictor: object, target: str, method: str) -> list[tuple[str, ...]]:
    """List the alternative sets of columns of a predictor; return [] for a predictor that uses the metrics."""
    columns = getattr(predictor, "columns", None)
    return [] if columns is None else list(columns(target, method))
