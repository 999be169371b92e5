"""Fit ridge regression in all folds, for all penalty strengths and all outcomes at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.errors import UserError
from mergeability.prediction.predictors.arrays import (
    InnerFold,
    Problem,
    Rows,
    Values,
    new_rows,
    training_arrays,
)
from mergeability.prediction.predictors.moments import Moments, Sums
from mergeability.prediction.predictors.pair_folds import PairFolds
from mergeability.prediction.predictors.pair_ridge import applies, predicted_pairs

Validation = tuple[np.ndarray, np.ndarray]
"""Of one inner fold: predictions (S, v, K) and measurements (v, K), both beyond the fold's training mean."""

Choice = Callable[[np.ndarray, np.ndarray, Sequence[InnerFold]], np.ndarray | None]
"""Chooses strengths: from rows (n, m), outcomes (n, K) and inner folds to K indices, or None if there are no folds."""

_BATCH = 64
"""Folds that are solved together: more would take memory, fewer time."""


def ridge_weights(
    gram: Float[np.ndarray, "F m m"],
    cross: Float[np.ndarray, "F m K"],
    strengths: Float[np.ndarray, " S"],
) -> Float[np.ndarray, "F S m K"]:
    """Solve (XᵀX + s·I) w = XᵀY for every fold and every strength s > 0; an infinite s gives w = 0."""
    # One eigendecomposition per fold serves all strengths: (G + sI)⁻¹ = V (Λ + s)⁻¹ Vᵀ.
    values, vectors = np.linalg.eigh(gram)
    turned = vectors.mT @ cross
    # Rounding can make the smallest eigenvalues of collinear columns negative.
    denominators = np.maximum(values, 0.0)[:, None, :] + strengths[None, :, None]
    return vectors[:, None] @ (turned[:, None] / denominators[..., None])


def validated(
    X: Float[np.ndarray, "n m"],
    Y: Float[np.ndarray, "n K"],
    folds: Sequence[InnerFold],
    weights: Callable[[Sums], Float[np.ndarray, "F S m K"]],
) -> Iterator[Validation]:
    """Fit every fold with every penalty strength, and yield the predictions for the fold's validation rows."""
    for start in range(0, len(folds), _BATCH):
        batch = folds[start : start + _BATCH]
        moments = Moments(X, Y, training_masks(batch, len(X)))
        for index, (solved, (_, rows)) in enumerate(zip(weights(moments), batch, strict=True)):
            # Relative to the training means, which absorb the unpenalised intercept.
            beyond = (X[rows] - moments.means[index]) @ solved
            yield beyond, Y[rows] - moments.outcome_means[index]


def training_masks(folds: Sequence[InnerFold], n: int) -> Bool[np.ndarray, "F n"]:
    """Return a mask of the training rows of each fold."""
    masks = np.zeros((len(folds), n), dtype=bool)
    for mask, (training, _) in zip(masks, folds, strict=True):
        mask[training] = True
    return masks


def best_strengths(
    validations: Iterator[Validation], count: int, *, within: bool = False
) -> Int[np.ndarray, " K"] | None:
    """Return, for each outcome, the index of the strength with the lowest error in the inner folds.

    The chosen strength has the least squared error over all validation rows, the largest one on ties. If every
    fold has one row, the largest correlation decides instead, pooled over the folds, between predictions and
    measurements relative to the training mean: there the squared error mostly favours predicting nothing, since
    the training mean falls as the left-out outcome rises.

    Args:
        validations: predictions and measurements of each inner fold.
        count: number of strengths.
        within: whether to centre the errors within each fold, so that the level of a fold, which no correlation
            depends on, does not affect the choice.

    Returns:
        One index per outcome; None if there are no folds.
    """
    kept = list(validations)
    if not kept:
        return None
    if all(len(measured) == 1 for _, measured in kept):
        predicted = np.concatenate([one for one, _ in kept], axis=1)
        return most_correlated(predicted, np.concatenate([one for _, one in kept]))
    total: Any = 0.0
    for predicted, measured in kept:
        errors = predicted - measured
        if within:
            errors = errors - errors.mean(axis=1, keepdims=True)
        total = total + (errors**2).sum(axis=1)
    # argmin returns the first minimum, so search from the end: ties go to the largest strength.
    return count - 1 - np.argmin(total[::-1], axis=0)


def most_correlated(
    predicted: Float[np.ndarray, "S F K"], measured: Float[np.ndarray, "F K"]
) -> Int[np.ndarray, " K"]:
    """Return, for each outcome, the index of the penalty strength with the largest correlation in inner folds.

    Of equal correlations, the last is chosen.
    """
    scores = _correlations(predicted, measured)
    # An undefined correlation, for example of constant predictions, must never be selected.
    scores = np.where(np.isnan(scores), -np.inf, scores)
    return len(scores) - 1 - np.argmax(scores[::-1], axis=0)


def _correlations(
    predicted: Float[np.ndarray, "S v K"], measured: Float[np.ndarray, "v K"]
) -> Float[np.ndarray, "S K"]:
    p, m = predicted - predicted.mean(axis=1, keepdims=True), measured - measured.mean(axis=0)
    p_length, m_length = np.sqrt((p**2).sum(axis=1)), np.sqrt((m**2).sum(axis=0))
    length = p_length * m_length
    scale = np.abs(predicted).max(axis=1) * np.abs(measured).max(axis=0) * len(measured)
    # Undefined if deviations are only rounding errors (first tolerance), or predictions are 0 up to rounding (second).
    defined = (length > 1e-12 * scale) & (p_length > 1e-9 * m_length)
    return np.divide((p * m).sum(axis=1), length, out=np.full(length.shape, np.nan), where=defined)


def with_shared_rows(problems: Sequence[Problem]) -> list[list[int]]:
    """Group regression problems that have the same rows and folds and differ only in the outcome to predict."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (X, _, folds) in enumerate(problems):
        # By identity: callers pass the same array for the same rows, and comparing contents would cost more than a fit.
        groups.setdefault((id(X), id(folds)), []).append(index)
    return list(groups.values())


def checked_strengths(strengths: Sequence[float | int], owner: str) -> Float[np.ndarray, " S"]:
    """Check that strengths are positive, and return them in ascending order.

    Args:
        strengths: candidates.
        owner: name of the predictor, for the message.

    Returns:
        The sorted strengths.

    Raises:
        UserError: there is no strength, or one is not positive.
    """
    found = np.array(sorted(float(one) for one in strengths))
    if not len(found) or not (found > 0).all():
        raise UserError(f"Expected positive penalty strengths for {owner}, got {list(strengths)}.")
    return found


@dataclass(frozen=True)
class LinearFit:
    """Hold a fitted linear regression, y = intercept + X · weights, and the strength of its penalty."""

    weights: Float[np.ndarray, " m"]
    intercept: float
    strength: float


def fit_together(
    problems: Sequence[Problem],
    strengths: Float[np.ndarray, " S"],
    solve: Callable[[Sums], Float[np.ndarray, "F S m K"]],
    choose: Choice,
    otherwise: int,
) -> list[LinearFit]:
    """Fit a linear regression to each problem; problems with the same training rows are solved together.

    Args:
        problems: training rows, outcomes and inner folds.
        strengths: candidates.
        solve: from the sums of products of some folds to the weights for every strength.
        choose: from rows, outcomes and inner folds to the index of each outcome's strength; None if there are no folds.
        otherwise: the index of the strength that is used if there are no inner folds.

    Returns:
        One fit per problem.
    """
    fitted: dict[int, LinearFit] = {}
    for group in with_shared_rows(problems):
        X, _, folds = problems[group[0]]
        Y = np.stack([problems[index][1] for index in group], axis=1)
        chosen = choose(X, Y, folds or ())
        # Too few tasks for inner folds: use the default strength.
        chosen = np.full(len(group), otherwise) if chosen is None else chosen
        whole = Moments(X, Y, np.ones((1, len(X)), dtype=bool))
        weights = solve(whole)[0]
        for column, index in enumerate(group):
            own = weights[chosen[column], :, column]
            intercept = float(whole.outcome_means[0, column] - whole.means[0] @ own)
            fitted[index] = LinearFit(own, intercept, float(strengths[chosen[column]]))
    return [fitted[index] for index in range(len(problems))]


class Ridge(RegressorMixin, BaseEstimator):
    """Minimise ‖y - a - Xw‖² + s ‖w‖²; inner cross-validation on the training rows chooses s.

    `best_strengths` describes the choice; without inner folds the middle candidate is used.

    Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970.

    Args:
        strengths: candidates for s, all above 0.

    Attributes:
        coef_: the weights w, in outcome units.
        intercept_: a, in outcome units.
        strength_: the chosen s.

    Examples:
        >>> from mergeability.prediction import LeaveOneTaskOut, Ridge
        >>> from mergeability.prediction.examples import example_pairs
        >>> pairs = example_pairs()
        >>> X, ends = pairs[["cosine", "distance"]].to_numpy(), pairs[["task_a", "task_b"]]
        >>> folds = list(LeaveOneTaskOut().split(X, groups=ends))
        >>> model = Ridge(strengths=(0.1, 1, 10)).fit(X, pairs["norm_acc_ties"], folds)
        >>> model.strength_, model.coef_.round(3).tolist()
        (1.0, [0.024, 0.005])
        >>> model.predict([[0.5, 0.5]]).round(3).tolist()
        [0.885]
    """

    inputs: ClassVar[str] = "metrics"
    closed_form: ClassVar[bool] = True

    def __init__(self, strengths: Sequence[float | int] = (1, 3, 10, 30, 100, 300, 1000)) -> None:
        self.strengths = strengths

    def fit(self, X: Rows, y: Values, folds: Sequence[InnerFold] | None = None) -> "Ridge":
        """Choose the strength of the penalty by inner cross-validation, then fit the predictor to all rows.

        Args:
            X: metrics, (n, m).
            y: n outcomes.
            folds: inner folds that choose the strength; without folds, the middle candidate is used.

        Returns:
            The fitted predictor.

        Raises:
            UserError: a strength is not positive.
        """
        X, y = training_arrays(self, X, y)
        return self._take(solve_ridge([(X, y, folds)], self.strengths, subtract=True)[0])

    def fit_many(self, problems: Sequence[Problem]) -> list["Ridge"]:
        """Fit one regressor per problem (`Problem`); problems with the same training rows are solved together."""
        fitted = solve_ridge(problems, self.strengths, subtract=True)
        return [type(self)(**self.get_params())._take(one) for one in fitted]

    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the predictions, intercept + Xw, in units of the outcome."""
        return new_rows(self, X) @ self.coef_ + self.intercept_

    def _take(self, fitted: LinearFit) -> "Ridge":
        self.n_features_in_ = len(fitted.weights)
        self.coef_, self.intercept_, self.strength_ = fitted.weights, fitted.intercept, fitted.strength
        return self


def solve_ridge(
    problems: Sequence[Problem], strengths: Sequence[float | int], *, subtract: bool = False
) -> list[LinearFit]:
    """Fit ridge regression to each problem, with a strength that is chosen on the inner folds of the problem.

    Without inner folds, the middle strength is used.

    Args:
        problems: training rows, outcomes and inner folds.
        strengths: to choose from.
        subtract: whether inner folds that leave two tasks out are solved by `predicted_pairs`. The strengths of task
            effects predict pairs of new tasks alike but for a factor, so that rounding would choose another there.

    Raises:
        UserError: there is no strength, or one is not positive.
    """
    checked = checked_strengths(strengths, "ridge")

    def solve(moments: Sums) -> Float[np.ndarray, "F S m K"]:
        return ridge_weights(moments.gram, moments.cross, checked)

    def choose(
        X: Float[np.ndarray, "n m"], Y: Float[np.ndarray, "n K"], folds: Sequence[InnerFold]
    ) -> Int[np.ndarray, " K"] | None:
        if subtract and isinstance(folds, PairFolds) and applies(X, folds, checked):
            return most_correlated(*predicted_pairs(X, Y, folds, checked))
        return best_strengths(validated(X, Y, folds, solve), len(checked))

    return fit_together(problems, checked, solve, choose, otherwise=len(checked) // 2)
