"""Fit least squares after removing metrics that barely affect the training correlation."""

import numpy as np
from jaxtyping import Float, Int

from mergeability.prediction.predictors.subset import COLLINEAR, SubsetRegressor, without_direction


class BackwardElimination(SubsetRegressor):
    """Fit by least squares, and repeatedly remove the metric whose removal causes the smallest decrease of r.

    Here r is the correlation on the training pairs. Elimination stops when every removal would lower r by more than
    `tolerance`. Constant metrics and linear combinations of other metrics are removed first. With columns = QR and
    coefficients b, removing column j adds b_j² / ‖row j of R⁻¹‖² to the squared residual, so each step needs one small
    inverse and no refit.

    Args:
        tolerance: the largest accepted loss of r per step, at least 0.

    Attributes:
        selected_: indices of the remaining metrics.
        coef_: weights, 0 for removed metrics.
        intercept_: in outcome units.

    Examples:
        >>> from mergeability.prediction import BackwardElimination
        >>> X = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 1.0], [5.0, 0.0]]
        >>> y = [0.50, 0.61, 0.70, 0.81, 0.90, 1.01]
        >>> model = BackwardElimination(tolerance=0.01).fit(X, y)
        >>> model.selected_.tolist(), model.coef_.round(2).tolist()
        ([0], [0.1, 0.0])
    """

    def _select(
        self, columns: Float[np.ndarray, "n m"], outcome: Float[np.ndarray, " n"]
    ) -> Int[np.ndarray, " selected"]:
        kept = independent_columns(columns)
        if not outcome.any():
            return kept[:0]
        rotation, triangle = np.linalg.qr(columns[:, kept])
        pull = rotation.T @ outcome
        while len(kept):
            r_squared = float(pull @ pull)
            without = r_squared - removal_costs(triangle, pull)
            last = int(np.argmax(without))
            if np.sqrt(r_squared) - np.sqrt(max(without[last], 0.0)) > self.tolerance:
                break
            kept = np.delete(kept, last)
            rotation, triangle = np.linalg.qr(np.delete(triangle, last, axis=1))
            pull = rotation.T @ pull
        return kept


def independent_columns(columns: Float[np.ndarray, "n m"]) -> Int[np.ndarray, " independent"]:
    """Return the indices, in table order, of linearly independent columns that span the same space as all columns.

    Each column has length 1 or 0. Each step takes the column that is farthest from the span of those taken before.

    Args:
        columns: n rows of m columns.

    Returns:
        Indices of the columns taken.
    """
    left, taken = columns, []
    while len(taken) < columns.shape[1]:
        length = np.sqrt((left**2).sum(axis=0))
        farthest = int(np.argmax(length))
        if length[farthest] <= COLLINEAR:
            break
        taken.append(farthest)
        left = without_direction(left, farthest)
    return np.sort(np.array(taken, dtype=int))


def removal_costs(
    triangle: Float[np.ndarray, "k k"], pull: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Return the decrease of r² if column j is removed: b_j² / (S⁻¹)_jj with b = R⁻¹Qᵀy and S = RᵀR.

    Args:
        triangle: R of the QR decomposition of the columns.
        pull: Qᵀy, for an outcome y of mean 0 and length 1.

    Returns:
        One number in [0, 1] per column.
    """
    # NumPy instead of SciPy's triangular solver, whose separate thread pool competes with NumPy's.
    inverse = np.linalg.inv(triangle)
    return (inverse @ pull) ** 2 / (inverse**2).sum(axis=1)
