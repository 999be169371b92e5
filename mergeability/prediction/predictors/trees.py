"""Extremely randomised trees on the metrics of a pair."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor

from mergeability.checks import Count, Seed
from mergeability.prediction.predictors.arrays import Rows, Values, new_rows, training_arrays


class Trees(RegressorMixin, BaseEstimator):
    """Average the leaf means of trees whose cuts are drawn at random and chosen by squared error.

    `forest_` is scikit-learn's. Nothing runs in parallel: starting threads takes longer than a forest on a few
    hundred pairs. Geurts, Ernst and Wehenkel, 2006.
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(self, trees: Count = 200, smallest_leaf: Count = 3, seed: Seed = 0) -> None:
        self.trees = trees
        self.smallest_leaf = smallest_leaf
        self.seed = seed

    def fit(self, X: Rows, y: Values) -> "Trees":
        """Grow the trees on all training rows."""
        X, y = training_arrays(self, X, y)
        self.forest_ = ExtraTreesRegressor(
            n_estimators=self.trees, min_samples_leaf=self.smallest_leaf, random_state=self.seed
        ).fit(X, y)
        return self

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Average the trees, in outcome units."""
        X = new_rows(self, X)
        return self.forest_.predict(X)
