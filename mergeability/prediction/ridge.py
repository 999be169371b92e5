"""Ridge regression in all folds, for all strengths and all outcomes of the same rows at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, RegressorMixin, clone

from mergeability.errors import UserError
from mergeability.prediction.arrays import Rows, Values, new_rows, training_arrays
from mergeability.prediction.protocols import InnerFold
from mergeability.prediction.scores import MIN_PAIRS

Problem = tuple[np.ndarray, np.ndarray, Sequence[InnerFold] | None]
"""Training rows, their outcome, and the inner folds that choose a strength."""

_BATCH = 64
"""Folds that are solved together: more would take memory, fewer time."""


class Moments:
    """What a least-squares fit depends on, in each of F folds: centred sums over its training rows.

    Attributes:
        means: of the columns, (F, m).
        outcome_means: (F, K).
        gram: ΣXᵀX about the means, (F, m, m).
        cross: ΣXᵀY about the means, (F, m, K).
    """

    def __init__(
        self,
        X: Float[np.ndarray, "n m"],
        Y: Float[np.ndarray, "n K"],
        training: Bool[np.ndarray, "F n"],
    ) -> None:
        # About the means of all rows first: sums about a far-off origin would cancel.
        centre, outcome_centre = X.mean(axis=0), Y.mean(axis=0)
        X, Y, weights = X - centre, Y - outcome_centre, training.astype(np.float64)
        count = weights.sum(axis=1)[:, None]
        n, m = X.shape
        mean, outcome_mean = weights @ X / count, weights @ Y / count
        squares = (X[:, :, None] * X[:, None, :]).reshape(n, m * m)
        products = (X[:, :, None] * Y[:, None, :]).reshape(n, m * Y.shape[1])
        self.gram = (weights @ squares).reshape(-1, m, m) - count[:, None] * mean[:, :, None] * mean[:, None]
        self.cross = (weights @ products).reshape(-1, m, Y.shape[1]) - (
            count[:, None] * mean[:, :, None] * outcome_mean[:, None]
        )
        self.means, self.outcome_means = mean + centre, outcome_mean + outcome_centre


def ridge_weights(
    gram: Float[np.ndarray, "F m m"],
    cross: Float[np.ndarray, "F m K"],
    strengths: Float[np.ndarray, " S"],
) -> Float[np.ndarray, "F S m K"]:
    """Solve (XᵀX + s·I) w = XᵀY in every fold for every strength s > 0; an infinite s gives w = 0."""
    values, vectors = np.linalg.eigh(gram)
    turned = vectors.mT @ cross
    # Rounding can push the smallest eigenvalues of collinear columns below 0.
    denominators = np.maximum(values, 0.0)[:, None, :] + strengths[None, :, None]
    return vectors[:, None] @ (turned[:, None] / denominators[..., None])


def validated(
    X: Float[np.ndarray, "n m"],
    Y: Float[np.ndarray, "n K"],
    folds: Sequence[InnerFold],
    predict: Callable[[Moments, Sequence[InnerFold]], Iterator[Float[np.ndarray, "S v K"]]],
) -> Iterator[tuple[Float[np.ndarray, "S v K"], Float[np.ndarray, "v K"]]]:
    """Fit every fold and yield what is predicted for its validation rows, and what was measured there."""
    for start in range(0, len(folds), _BATCH):
        batch = folds[start : start + _BATCH]
        moments = Moments(X, Y, training_masks(batch, len(X)))
        for predicted, (_, rows) in zip(predict(moments, batch), batch, strict=True):
            yield predicted, Y[rows]


def training_masks(folds: Sequence[InnerFold], n: int) -> Bool[np.ndarray, "F n"]:
    """Mark the training rows of each fold."""
    masks = np.zeros((len(folds), n), dtype=bool)
    for mask, (training, _) in zip(masks, folds, strict=True):
        mask[training] = True
    return masks


def least_error(
    validations: Iterator[tuple[Float[np.ndarray, "S v K"], Float[np.ndarray, "v K"]]], count: int
) -> Int[np.ndarray, " K"] | None:
    """Return for each outcome the strength with the least squared error over all folds, of equals the last.

    None where there is no fold.
    """
    total: Any = None
    for predicted, measured in validations:
        errors = ((predicted - measured) ** 2).sum(axis=1)
        total = errors if total is None else total + errors
    return None if total is None else count - 1 - np.argmin(total[::-1], axis=0)


def largest_correlation(
    validations: Iterator[tuple[Float[np.ndarray, "S v K"], Float[np.ndarray, "v K"]]], count: int
) -> Int[np.ndarray, " K"] | None:
    """Return for each outcome the strength with the largest mean correlation over the folds, of equals the last.

    Where no fold has the three pairs that a correlation needs, the least squared error decides instead.
    """
    kept = list(validations)
    found = [
        _correlations(predicted, measured) for predicted, measured in kept if len(measured) >= MIN_PAIRS
    ]
    if not found:
        return least_error(iter(kept), count)
    known = np.array([~np.isnan(one) for one in found]).sum(axis=0)
    mean = np.divide(np.nansum(found, axis=0), known, out=np.full(known.shape, -np.inf), where=known > 0)
    return count - 1 - np.argmax(mean[::-1], axis=0)


def _correlations(
    predicted: Float[np.ndarray, "S v K"], measured: Float[np.ndarray, "v K"]
) -> Float[np.ndarray, "S K"]:
    p, m = predicted - predicted.mean(axis=1, keepdims=True), measured - measured.mean(axis=0)
    length = np.sqrt((p**2).sum(axis=1) * (m**2).sum(axis=0))
    scale = np.abs(predicted).max(axis=1) * np.abs(measured).max(axis=0) * len(measured)
    # Below this both differ by rounding only.
    defined = length > 1e-12 * scale
    return np.divide((p * m).sum(axis=1), length, out=np.full(length.shape, np.nan), where=defined)


def with_shared_rows(problems: Sequence[Problem]) -> list[list[int]]:
    """Group the problems that have the very same rows and folds and differ in their outcomes only."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (X, _, folds) in enumerate(problems):
        groups.setdefault((id(X), id(folds)), []).append(index)
    return list(groups.values())


def checked_strengths(strengths: Sequence[float | int], owner: str) -> Float[np.ndarray, " S"]:
    """Return strengths in ascending order.

    Raises:
        UserError: there is none, or one is not positive.
    """
    found = np.array(sorted(float(one) for one in strengths))
    if not len(found) or not (found > 0).all():
        raise UserError(f"The strengths of {owner} must be positive, not {list(strengths)}.")
    return found


class Ridge(RegressorMixin, BaseEstimator):
    """Minimise ‖y - a - Xw‖² + s ‖w‖², the strength s chosen by inner folds of the training rows.

    The strength with the least squared error on the rows that the inner folds leave out wins, of equals the
    largest; without inner folds, the middle one. Hoerl and Kennard, 1970. `coef_` is w, `intercept_` a,
    `strength_` s.
    """

    inputs: ClassVar[str] = "metrics"
    closed_form: ClassVar[bool] = True

    def __init__(
        self, strengths: Sequence[float | int] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
    ) -> None:
        self.strengths = strengths

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None) -> "Ridge":
        """Choose the strength on the inner folds and fit all rows."""
        X, y = training_arrays(self, X, y)
        fitted = self.fit_many([(X, y, folds)])[0]
        self.coef_, self.intercept_, self.strength_ = fitted.coef_, fitted.intercept_, fitted.strength_
        return self

    def fit_many(self, problems: Sequence[Problem]) -> list["Ridge"]:
        """Fit one regressor a problem; those that share their rows are solved together."""
        strengths = checked_strengths(self.strengths, "ridge")
        fitted: list[Any] = [clone(self) for _ in problems]
        for group in with_shared_rows(problems):
            X, _, folds = problems[group[0]]
            Y = np.stack([problems[index][1] for index in group], axis=1)
            chosen = self._chosen(X, Y, folds or (), strengths)
            whole = Moments(X, Y, np.ones((1, len(X)), dtype=bool))
            weights = ridge_weights(whole.gram, whole.cross, strengths)[0]
            for column, index in enumerate(group):
                model = fitted[index]
                model.n_features_in_ = X.shape[1]
                model.strength_ = float(strengths[chosen[column]])
                model.coef_ = weights[chosen[column], :, column]
                model.intercept_ = float(whole.outcome_means[0, column] - whole.means[0] @ model.coef_)
        return fitted

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Evaluate a + Xw, in outcome units."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    @staticmethod
    def _chosen(
        X: Float[np.ndarray, "n m"],
        Y: Float[np.ndarray, "n K"],
        folds: Sequence[InnerFold],
        strengths: Float[np.ndarray, " S"],
    ) -> Int[np.ndarray, " K"]:
        chosen = least_error(validated(X, Y, folds, ridge_path(X, strengths)), len(strengths))
        return np.full(Y.shape[1], len(strengths) // 2) if chosen is None else chosen


def ridge_path(
    X: Float[np.ndarray, "n m"], strengths: Float[np.ndarray, " S"]
) -> Callable[[Moments, Sequence[InnerFold]], Iterator[Float[np.ndarray, "S v K"]]]:
    """Return what predicts the validation rows of folds for every strength."""

    def predict(moments: Moments, folds: Sequence[InnerFold]) -> Iterator[Float[np.ndarray, "S v K"]]:
        weights = ridge_weights(moments.gram, moments.cross, strengths)
        for index, (_, rows) in enumerate(folds):
            yield (X[rows] - moments.means[index]) @ weights[index] + moments.outcome_means[index]

    return predict
