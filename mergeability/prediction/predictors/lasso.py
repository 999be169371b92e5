"""Fit least squares with an L1 penalty, which is the elastic net without its L2 penalty."""

from mergeability.checks import Count, NotNegative, Positive
from mergeability.prediction.predictors.elastic_net import ElasticNet


class Lasso(ElasticNet):
    """Minimise ‖y - a - Xw‖² / 2n + s ‖w‖₁; inner cross-validation on the training rows chooses s.

    This is `ElasticNet` with `l1_ratio` 1; its other arguments and attributes apply.

    Source: Tibshirani, "Regression shrinkage and selection via the lasso", 1996.

    Args:
        strengths: number of candidates for s.
        smallest: the smallest candidate, as a share of the largest, in (0, 1].
        tolerance: tolerance of the coordinate descent of scikit-learn.
        max_sweeps: most passes over the coordinates.

    Examples:
        >>> from mergeability.prediction import Lasso
        >>> X = [[-1.0, 0.2], [-0.6, -0.5], [-0.2, 0.9], [0.2, -0.9], [0.6, 0.5], [1.0, -0.2]]
        >>> model = Lasso(smallest=0.1).fit(X, [0.50, 0.61, 0.69, 0.80, 0.91, 1.00])
        >>> (model.coef_ != 0).tolist()
        [True, False]
    """

    def __init__(
        self,
        strengths: Count = 12,
        smallest: Positive = 1e-2,
        tolerance: NotNegative = 1e-3,
        max_sweeps: Count = 10_000,
    ) -> None:
        super().__init__(
            l1_ratio=1.0, strengths=strengths, smallest=smallest, tolerance=tolerance, max_sweeps=max_sweeps
        )
