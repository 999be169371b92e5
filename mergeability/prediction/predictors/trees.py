"""Predict outcomes from metrics with extremely randomised trees."""

from typing import ClassVar

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import ExtraTreesRegressor

from mergeability.checks import Count, Seed
from mergeability.prediction.predictors.arrays import Rows, Values, new_rows, training_arrays


class Trees(RegressorMixin, BaseEstimator):
    """Predict the outcome of a pair from its metrics: the mean of extremely randomised trees.

    Cuts are drawn at random and compared by squared error. The trees are those of scikit-learn, fitted without
    parallel jobs: starting threads takes longer than a forest on a few hundred pairs.

    Source: Geurts, Ernst and Wehenkel, "Extremely randomized trees", 2006.

    Args:
        trees: number of trees.
        smallest_leaf: fewest training rows in a leaf.
        seed: seed of the random cuts.

    Attributes:
        forest_: the fitted `sklearn.ensemble.ExtraTreesRegressor`.

    Examples:
        >>> from mergeability.prediction import Trees
        >>> from mergeability.prediction.examples import example_pairs
        >>> pairs = example_pairs()
        >>> model = Trees(trees=20).fit(pairs[["cosine", "distance"]].to_numpy(), pairs["norm_acc_ties"])
        >>> len(model.forest_.estimators_)
        20
        >>> low, high = model.predict([[0.1, 0.5], [0.9, 0.5]])
        >>> bool(low < high)
        True
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
        """Return the mean prediction of the trees, in units of the outcome."""
        X = new_rows(self, X)
        return self.forest_.predict(X)
