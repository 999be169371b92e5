"""Check the inputs of predictors; scikit-learn's validation functions are used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

Rows = Any
"""What scikit-learn takes for X: an array, list of lists or frame of n rows; checked and converted by these."""

Values = Any
"""What scikit-learn takes for y: n numbers."""

InnerFold = tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]
"""Rows of the training fold to fit on, and rows to validate on, as scikit-learn's `cv` yields them."""

Problem = tuple[np.ndarray, np.ndarray, Sequence[InnerFold] | None]
"""The data of one of the fits of `fit_many`: X, y and inner folds."""

# scikit-learn has no type annotations here, and types inferred from defaults ("no_validation") are wrong.
_validate: Any = validate_data


def training_arrays(
    estimator: BaseEstimator, X: Rows, y: Values
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, " n"]]:
    """Check and convert the arguments of `fit`.

    Args:
        estimator: the predictor.
        X: n rows of m columns.
        y: n outcomes.

    Returns:
        Both as arrays in double precision.

    Raises:
        ValueError: NaN, infinity, text or unequal lengths.
    """
    X, y = _validate(estimator, X, y, dtype=np.float64, y_numeric=True)
    return X, np.asarray(y, dtype=np.float64)


def new_rows(estimator: BaseEstimator, X: Rows) -> Float[np.ndarray, "n m"]:
    """Check and convert the argument of `predict`; the estimator must be fitted on the same number of columns."""
    check_is_fitted(estimator)
    return _validate(estimator, X, dtype=np.float64, reset=False)


def unlabelled_rows(estimator: BaseEstimator, X: Rows) -> Float[np.ndarray, "n m"]:
    """Check and convert the argument of a transformer's `fit`; unlike a regressor, a transformer takes no outcomes."""
    return _validate(estimator, X, dtype=np.float64)
