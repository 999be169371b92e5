"""Start from no metric and add those that raise training r."""

import numpy as np
from jaxtyping import Float, Int

from mergeability.prediction.predictors.subset import COLLINEAR, SubsetRegressor, without_direction


class ForwardSelection(SubsetRegressor):
    """Add the metric whose addition raises the training r of least squares most, until by less than `tolerance`.

    With z_j what the metrics taken so far leave of metric j, adding it raises r² by (z_j'y)² / z_j'z_j, y of
    length 1. A metric of which they leave nothing but rounding is never added.
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
