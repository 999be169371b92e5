"""Fit least squares on metrics that are added one by one while the training correlation increases."""

import numpy as np
from jaxtyping import Float, Int

from mergeability.prediction.predictors.subset import COLLINEAR, SubsetRegressor, without_direction


class ForwardSelection(SubsetRegressor):
    """Fit by least squares, and repeatedly add the metric that causes the largest increase of r.

    Here r is the correlation on the training pairs. Selection stops when no metric would raise r by `tolerance`. Let
    z_j be the residual of metric j given the metrics already taken; adding it raises r² by (z_j·y)² / ‖z_j‖², for y of
    length 1. A metric that is a linear combination of those taken is never added.

    Args:
        tolerance: the smallest gain of r per step, at least 0.

    Attributes:
        selected_: indices of the metrics taken.
        coef_: weights, 0 for the other metrics.
        intercept_: in outcome units.

    Examples:
        >>> from mergeability.prediction import ForwardSelection
        >>> X = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 1.0], [5.0, 0.0]]
        >>> y = [0.50, 0.61, 0.70, 0.81, 0.90, 1.01]
        >>> model = ForwardSelection(tolerance=0.01).fit(X, y)
        >>> model.selected_.tolist(), model.predict([[6.0, 0.0]]).round(2).tolist()
        ([0], [1.11])
    """

    def _select(
        self, columns: Float[np.ndarray, "n m"], outcome: Float[np.ndarray, " n"]
    ) -> Int[np.ndarray, " selected"]:
        left, r_squared = columns, 0.0
        taken: list[int] = []
        while True:
            length = np.sqrt((left**2).sum(axis=0))
            new = length > COLLINEAR
            unit = left / np.where(new, length, 1.0)
            gains = np.where(new, (unit.T @ outcome) ** 2, 0.0)
            best = int(np.argmax(gains))
            gain = float(np.sqrt(r_squared + gains[best]) - np.sqrt(r_squared))
            if not gains[best] > 0 or gain < self.tolerance:
                return np.array(taken, dtype=int)
            taken.append(best)
            r_squared += float(gains[best])
            left = without_direction(left, best)
