"""Fit ridge regression in all folds that leave out two tasks, with one factorisation for all of these folds.

Leaving out two tasks changes the sums of products only slightly. So the eigenvectors of all rows approximately
diagonalise those of a fold, and preconditioned conjugate gradients need only a few products of small matrices per fold,
while an eigendecomposition per fold would take several times as long.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mergeability.prediction.predictors.arrays import InnerFold
from mergeability.prediction.predictors.moments import Sums, TaskSums
from mergeability.prediction.predictors.pair_folds import PairFolds

_BATCH = 64
"""Folds that are solved together, so that their arrays stay in the processor's cache."""

_TOLERANCE = 1e-12
"""Residual norm at which a solution is accepted, relative to the norm of the right-hand side."""

_MAX_STEPS = 40
"""Conjugate gradient steps before a fold is solved directly instead; usual are four to nine."""

_CONDITION = 1e6
"""Largest condition number of the equations: rounding then stays below about 1e-10 of the predictions."""


def applies(
    X: Float[np.ndarray, "n m"], folds: Sequence[InnerFold], strengths: Float[np.ndarray, " S"]
) -> bool:
    """Return whether `predicted_pairs` can be used instead of one fit per fold.

    This requires `PairFolds` without repeated pairs, and strengths large enough for the precision of subtracted sums.
    """
    if not (isinstance(folds, PairFolds) and folds.distinct and len(folds)):
        return False
    # The trace bounds the largest eigenvalue.
    return bool(((X - X.mean(axis=0)) ** 2).sum() <= _CONDITION * strengths[0])


def predicted_pairs(
    X: Float[np.ndarray, "n m"],
    Y: Float[np.ndarray, "n K"],
    folds: PairFolds,
    strengths: Float[np.ndarray, " S"],
) -> tuple[Float[np.ndarray, "S F K"], Float[np.ndarray, "F K"]]:
    """Predict each pair by ridge regression on the training rows of the pair's fold, for each penalty strength.

    Args:
        X: columns of the pairs.
        Y: outcomes.
        folds: folds of these pairs, no pair twice.
        strengths: strengths of the penalty s ‖w‖², in ascending order.

    Returns:
        Predictions and measurements, both beyond the mean outcome of the fold's training rows.
    """
    X = X - X.mean(axis=0)
    values, vectors = np.linalg.eigh(X.T @ X)
    # Rounding can make the smallest eigenvalues of collinear columns negative.
    values = np.maximum(values, 0.0)
    # In the eigenbasis of all rows, the Gram matrix of a fold is Λ minus a small correction.
    sums = TaskSums(X @ vectors, Y, folds.ends, folds.tasks)
    predicted = np.empty((len(strengths), len(folds), Y.shape[1]))
    measured = np.empty((len(folds), Y.shape[1]))
    for start in range(0, len(folds), _BATCH):
        rows = folds.rows[start : start + _BATCH]
        removed = sums.removed_with(rows)
        beyond = sums.X[rows] - removed.means
        solved = _weights(values, removed, (sums.cross - removed.cross).mT, strengths)
        here = slice(start, start + len(rows))
        predicted[:, here] = np.einsum("fm,fskm->sfk", beyond, solved)
        measured[here] = sums.Y[rows] - removed.outcome_means
    return predicted, measured


def _weights(
    values: Float[np.ndarray, " m"],
    removed: Sums,
    cross: Float[np.ndarray, "F K m"],
    strengths: Float[np.ndarray, " S"],
) -> Float[np.ndarray, "F S K m"]:
    """Solve (Λ - R + sI) w = c in every fold, where Λ are the eigenvalues of all rows and R what the fold removes."""
    count, outcomes, m = cross.shape
    # With w = P v and P² = (Λ + s)⁻¹ the equations are (I - P R P) v = P c, whose matrix is close to the identity.
    scale = np.repeat(1 / np.sqrt(values + strengths[:, None]), outcomes, axis=0)
    right = scale * np.tile(cross, (1, len(strengths), 1))
    found, converged = _conjugate_gradients(removed.gram, scale, right)
    weights = (scale * found).reshape(count, len(strengths), outcomes, m)
    # Solve the few folds directly that are too different from all rows.
    if not converged.all():
        left = np.diag(values) - removed.gram[~converged]
        weights[~converged] = _solved(left, cross[~converged], strengths)
    return weights


def _solved(
    gram: Float[np.ndarray, "F m m"], cross: Float[np.ndarray, "F K m"], strengths: Float[np.ndarray, " S"]
) -> Float[np.ndarray, "F S K m"]:
    """Solve by the eigenvalues of each fold."""
    values, vectors = np.linalg.eigh(gram)
    denominators = np.maximum(values, 0.0)[:, None] + strengths[:, None]
    return ((cross @ vectors)[:, None] / denominators[:, :, None]) @ vectors[:, None].mT


@dataclass
class _State:
    """Solutions v, residuals r, directions p, and ‖r‖², one row per strength and outcome of each fold."""

    v: Float[np.ndarray, "F Q m"]
    r: Float[np.ndarray, "F Q m"]
    p: Float[np.ndarray, "F Q m"]
    squares: Float[np.ndarray, "F Q"]


def _conjugate_gradients(
    removed: Float[np.ndarray, "F m m"], scale: Float[np.ndarray, "Q m"], right: Float[np.ndarray, "F Q m"]
) -> tuple[Float[np.ndarray, "F Q m"], np.ndarray]:
    """Solve (I - P R P) v = right; also tell which folds converged."""
    squares = np.vecdot(right, right)
    state = _State(np.zeros_like(right), right.copy(), right.copy(), squares.copy())
    enough = _TOLERANCE**2 * squares
    for _ in range(_MAX_STEPS):
        unsolved = np.flatnonzero((state.squares > enough).any(axis=0))
        if not len(unsolved):
            break
        # Large strengths, in the last rows, converge first, so only the remaining rows are iterated.
        _step(state, slice(0, unsolved[-1] + 1), removed, scale)
    return state.v, (state.squares <= enough).all(axis=1)


def _step(
    state: _State, rows: slice, removed: Float[np.ndarray, "F m m"], scale: Float[np.ndarray, "Q m"]
) -> None:
    """Take one step of conjugate gradients in some rows of every fold, in place."""
    v, r, p, before = (part[:, rows] for part in (state.v, state.r, state.p, state.squares))
    moved = (scale[rows] * p) @ removed
    moved *= scale[rows]
    moved = p - moved
    length = _divided(before, np.vecdot(p, moved))[..., None]
    v += length * p
    moved *= length
    r -= moved
    after = np.vecdot(r, r)
    p *= _divided(after, before)[..., None]
    p += r
    before[...] = after


def _divided(first: Float[np.ndarray, "F Q"], second: Float[np.ndarray, "F Q"]) -> Float[np.ndarray, "F Q"]:
    """Divide; 0 if the second is 0, as of a right-hand side of zeros, which is solved."""
    return np.divide(first, second, out=np.zeros_like(first), where=second != 0)
