"""Start from all metrics and drop those that training r can do without."""

import numpy as np
from jaxtyping import Float, Int

from mergeability.prediction.predictors.subset import COLLINEAR, SubsetRegressor, without_direction


class BackwardElimination(SubsetRegressor):
    """Drop the metric whose removal costs the training r of least squares least, until it exceeds `tolerance`.

    A metric that is a linear combination of the others costs nothing and goes first, one that is constant as
    well. With columns = QR and b their coefficients, removing column j adds b_j² / ‖row j of R⁻¹‖² to the
    residual's square, so a step needs one small inverse and no further fit.
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
    """Name columns that span what all of them span, none of which the others explain; in table order.

    `columns` have length 1, or 0. The next is always the one that is farthest from those taken before.
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
    """Give by how much r² falls when one column is removed: b_j² / (S⁻¹)_jj, b = R⁻¹ pull, S = R'R."""
    # SciPy's solver for triangles has threads of its own, which stand in the way of NumPy's.
    inverse = np.linalg.inv(triangle)
    return (inverse @ pull) ** 2 / (inverse**2).sum(axis=1)
