"""Model Breadcrumbs: drop outliers and noise (Davari & Belilovsky 2024, arXiv 2312.06795)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.magnitudes import smallest_value
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class Breadcrumbs(ByParameter):
    """Drop the largest and smallest entries of every tensor of every model, and sum the rest.

    Of the D entries of a tensor, sorted by magnitude, the first ⌊smallest·D⌋ and the last ⌊largest·D⌋ are dropped.
    Entries of equal magnitude are treated alike: an entry as large as a kept one is kept too.

    Formula: M = Σ m_t ⊙ τ_t, where m_t is 0 at the largest and the smallest entries of τ_t and 1 elsewhere.

    Attributes:
        largest: share of the largest entries, in [0, 1).
        smallest: share of the smallest entries, in [0, 1); both together are below 1.
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: the shares are negative or add up to 1 or more, or `alpha` is neither a finite number nor "tuned".

    Paper: Davari & Belilovsky 2024, Model Breadcrumbs, arXiv 2312.06795.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Breadcrumbs
        >>> models = tiny_task_vectors(cars=[9, 4, 3, 1], svhn=[1, 2, -8, 3])
        >>> Breadcrumbs(largest=0.25, smallest=0.25)(models)
        {'weight': tensor([0., 6., 3., 3.])}
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    largest: float | int = 0.01
    smallest: float | int = 0.85
    alpha: float | int | str = 0.3

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not (self.largest >= 0 and self.smallest >= 0 and self.largest + self.smallest < 1):
            raise UserError(
                "Expected the options `largest` and `smallest` to be shares that are at least 0 and add up to less "
                f"than 1, got {self.largest!r} and {self.smallest!r}."
            )

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        task_vectors = checked(models)
        return Streamed(task_vectors, lambda name: self._merge(task_vectors, name))

    def _merge(self, task_vectors: TaskVectors, name: str) -> Float[Tensor, "*shape"]:
        total = torch.zeros(task_vectors.shapes[name])
        # One model at a time, because thresholds need all of a tensor's entries.
        for delta in task_vectors.each(name):
            total += self._thinned(delta)
        return total

    def _thinned(self, delta: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop the ends of one tensor of one model."""
        size = delta.numel()
        if size == 0:
            return delta
        magnitudes = delta.abs()
        # Thresholds are found by selection instead of sorting; comparing values makes the result independent of
        # positions.
        flat = magnitudes.flatten()
        least = smallest_value(flat, math.floor(self.smallest * size) + 1)
        most = smallest_value(flat, size - math.floor(self.largest * size))
        return torch.where((magnitudes >= least) & (magnitudes <= most), delta, 0)
