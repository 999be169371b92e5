"""Measure the error of rounding a merge to a narrower dtype."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Of a larger sum of squares in float32, those that were too small for float32 are not missed.
_SAFE = 1e-25


@dataclass
class Rounding:
    """The rounding error of a merge, over all parameters that are saved with less precision than float32.

    With the exact values θ = θ_0 + α·M and the rounded ones θ̂, in float32:

    Attributes:
        change: Σ (θ - θ_0)².
        lost: Σ (θ̂ - θ)².
        moved: parameters with θ ≠ θ_0.
        unmoved: those of them with θ̂ = θ_0, whose change vanished.

    Examples:
        >>> import torch
        >>> from mergeability.merging.application import apply
        >>> from mergeability.merging.rounding import Rounding
        >>> rounding = Rounding()
        >>> base = {"w": torch.ones(2, dtype=torch.bfloat16)}
        >>> apply(base, {"w": torch.tensor([0.001, 0.5])}, alpha=1, rounding=rounding)["w"]
        tensor([1.0000, 1.5000], dtype=torch.bfloat16)
        >>> rounding.unmoved, round(rounding.survives, 6)
        (1, 0.999996)
    """

    change: float = 0.0
    lost: float = 0.0
    moved: int = 0
    unmoved: int = 0

    @property
    def survives(self) -> float:
        """The share of the squared change that survives rounding; it is below 0 if rounding errors dominate.

        Formula: 1 - Σ(θ̂ - θ)² / Σ(θ - θ_0)².
        """
        return 1 - self.lost / self.change if self.change else 1.0

    def add(self, other: "Rounding") -> None:
        """Add the sums of other parameters."""
        self.change, self.lost = self.change + other.change, self.lost + other.lost
        self.moved, self.unmoved = self.moved + other.moved, self.unmoved + other.unmoved

    def count(self, base: Tensor, exact: Tensor, rounded: Tensor) -> None:
        """Add one tensor to the running sums, given its float32 values in the base, the merge and the rounded merge."""
        self.change += _squared_norm(exact - base)
        self.lost += _squared_norm(rounded - exact)
        # NumPy compares and counts in a fifth of PyTorch's time.
        before, after, kept = (one.cpu().numpy() for one in (base, exact, rounded))
        moved = after != before
        self.moved += int(np.count_nonzero(moved))
        self.unmoved += int(np.count_nonzero(moved & (kept == before)))


def _squared_norm(values: Tensor) -> float:
    """Return Σ x² of one block, to six digits."""
    flat = values.reshape(-1)
    squared = float(torch.dot(flat, flat))
    # Squares in float32 overflow and vanish early. The norm in float64 takes three times as long.
    if _SAFE < squared < math.inf:
        return squared
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2
