"""Scale all metrics to the same range, so that their coefficients are comparable."""

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, TransformerMixin

from mergeability.prediction.predictors.arrays import Rows, new_rows, unlabelled_rows

_RELATIVE_SPREAD = 1e-12


class RangeScaler(TransformerMixin, BaseEstimator):
    """Map each column to [-1, 1] by 2 (x - min) / (max - min) - 1, with the range of the rows given to `fit`.

    New rows may fall outside [-1, 1]. A constant column becomes 0 everywhere, so that no regressor can use it.

    Attributes:
        data_min_: smallest value of each column.
        data_max_: largest value of each column.
        constant_: whether each column is constant.
    """

    def fit(self, X: Rows, y: object = None) -> "RangeScaler":
        """Store each column's smallest and largest value."""
        return self.fit_checked(unlabelled_rows(self, X))

    def transform(self, X: Rows) -> Float[np.ndarray, "n m"]:
        """Scale columns by the stored ranges."""
        return self.transform_checked(new_rows(self, X))

    def fit_checked(self, X: Float[np.ndarray, "n m"]) -> "RangeScaler":
        """Fit the scaler to rows without checking them, because the checks take longer than the computation."""
        self.n_features_in_ = X.shape[1]
        self.data_min_, self.data_max_ = X.min(axis=0), X.max(axis=0)
        largest = np.maximum(np.abs(self.data_min_), np.abs(self.data_max_))
        self.constant_: Bool[np.ndarray, " m"] = self.data_max_ - self.data_min_ <= _RELATIVE_SPREAD * largest
        return self

    def transform_checked(self, X: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
        """Scale rows without checking them."""
        spread = np.where(self.constant_, 1.0, self.data_max_ - self.data_min_)
        return np.where(self.constant_, 0.0, 2.0 * (X - self.data_min_) / spread - 1.0)
