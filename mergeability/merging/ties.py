"""TIES: trim, elect signs, disjoint merge (Yadav et al. 2023, arXiv 2306.01708)."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.magnitudes import check_density, magnitude_thresholds, smallest_value
from mergeability.task_vectors.vectors import TaskVectors

# Number of elements of every model merged at a time; sums of so many signs are exact in float32.
_PIECE = 2**16


@dataclass(frozen=True)
class Ties(ByParameter):
    """Keep each model's largest entries, elect a sign per entry, and average the entries with that sign.

    Trim: of D entries in the scope, keep those with |τ| ≥ the (D − ⌊density·D⌋)-th smallest magnitude. Elect: take the
    sign of the sum over the models; if the sum is exactly 0, the sign that most entries of the scope elected. Merge:
    average the kept entries with the elected sign.

    Formula: M = mean of the kept entries of τ_t whose sign is the elected one, entry by entry.

    Attributes:
        density: share of entries kept, in (0, 1].
        scope: "global" trims over the whole vector, as in the paper; "tensor" trims each tensor separately.
        agg: "mean" or "sum" of the entries with the elected sign; 0 if there are none.
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `density`, `scope`, `agg` or `alpha` is not one of the values above.

    Paper: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Ties
        >>> models = tiny_task_vectors(cars=[4, 1, 0, 2], svhn=[2, -3, 1, 0])
        >>> Ties(density=0.5)(models)
        {'weight': tensor([ 3., -3.,  1.,  2.])}
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    density: float | int = 0.2
    scope: str = "global"
    agg: str = "mean"
    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_density(self.density)
        if self.scope not in ("global", "tensor"):
            raise UserError(f"Expected scope to be 'global' or 'tensor', got {self.scope!r}.")
        if self.agg not in ("mean", "sum"):
            raise UserError(f"Expected agg to be 'mean' or 'sum', got {self.agg!r}.")

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        task_vectors = checked(models)
        scope_of = self._tensors(task_vectors) if self.scope == "tensor" else self._whole(task_vectors)

        def merge(name: str, stack: Tensor) -> Tensor:
            return self._merge(stack, scope_of(name))

        return streamed(task_vectors, merge, elementwise=True)

    def _whole(self, task_vectors: TaskVectors) -> Callable[[str], "_Scope"]:
        found = magnitude_thresholds(task_vectors, self.density)
        names = [name for name in task_vectors.names if name not in task_vectors.tied]
        scope = _Scope(task_vectors, names, [float(found[task]) for task in task_vectors.tasks])
        return lambda _name: scope

    def _tensors(self, task_vectors: TaskVectors) -> Callable[[str], "_Scope"]:
        scopes, lock = {}, threading.Lock()

        def find(name: str) -> _Scope:
            with lock:
                if name not in scopes:
                    size = task_vectors.parameters[name].size
                    rank = max(1, size - math.floor(self.density * size))
                    # One model at a time.
                    limits = [smallest_value(one.flatten().abs(), rank) for one in task_vectors.each(name)]
                    scopes[name] = _Scope(task_vectors, [name], limits)
                return scopes[name]

        return find

    def _merge(self, stack: Float[Tensor, "T elements"], scope: "_Scope") -> Float[Tensor, " elements"]:
        """Trim, elect and merge a block of one parameter."""
        merged = torch.empty(stack.shape[1])
        for part, trimmed, kept in _trimmed(stack, scope.thresholds):
            elected = trimmed.sum(0).sign_()
            # Entries that no model keeps are 0 in any case; only kept entries that cancel need the majority's sign.
            cancelled = (elected.numpy() == 0) & np.logical_or.reduce(kept)
            if cancelled.any():
                elected.masked_fill_(torch.from_numpy(cancelled), float(scope.majority))
            # Flip signs so that entries with the elected sign are positive.
            trimmed.mul_(elected).clamp_min_(0)
            total = trimmed.sum(0)
            if self.agg == "mean":
                total.div_(trimmed.sign_().sum(0).clamp_min_(1))
            torch.mul(total, elected, out=merged[part])
        return merged


class _Scope:
    """Hold the thresholds of the entries that are trimmed together, and the sign that most of them elect."""

    def __init__(self, task_vectors: TaskVectors, names: Sequence[str], thresholds: Sequence[float]) -> None:
        self.thresholds = np.array(thresholds, dtype=np.float32)[:, None]
        self._task_vectors, self._names = task_vectors, names
        self._majority: int | None = None
        self._lock = threading.Lock()

    @property
    def majority(self) -> int:
        """The sign of the sum of the elected signs; all models are read for it, at the first use."""
        with self._lock:
            if self._majority is None:
                found = (self._task_vectors.map_blocks(name, self._balance) for name in self._names)
                balance = sum(sum(balances) for balances in found)
                self._majority = (balance > 0) - (balance < 0)
            return self._majority

    def _balance(self, _part: slice, _base: Tensor, stack: Tensor) -> int:
        trimmed = (one for _, one, _ in _trimmed(stack, self.thresholds))
        return sum(int(one.sum(0).sign_().sum()) for one in trimmed)


def _trimmed(
    stack: Float[Tensor, "T elements"], thresholds: Float32[np.ndarray, "T 1"]
) -> Iterator[tuple[slice, Float[Tensor, "T piece"], Bool[np.ndarray, "T piece"]]]:
    """Trim the deltas piece by piece, so that each stays in the processor's cache.

    Yields:
        A range of the elements, the trimmed deltas, and which of them are kept.
    """
    for start in range(0, stack.shape[1], _PIECE):
        part = slice(start, start + _PIECE)
        # NumPy compares in a quarter of PyTorch's time.
        piece = stack[:, part].numpy()
        kept = np.abs(piece) >= thresholds
        yield part, torch.from_numpy(piece * kept), kept
