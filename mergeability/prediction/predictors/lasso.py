"""Least squares with an L1 penalty: the elastic net that selects most sharply."""

from mergeability.checks import Count, NotNegative, Positive
from mergeability.prediction.predictors.elastic_net import ElasticNet


class Lasso(ElasticNet):
    """Minimise ‖y - a - Xw‖² / 2n + s ‖w‖₁, the strength s chosen by inner folds of the training rows.

    All else is as in `ElasticNet`, whose `l1_ratio` is 1 here. Tibshirani, 1996.
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
