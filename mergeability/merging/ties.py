"""TIES: trim, elect signs, disjoint merge (Yadav et al. 2023, arXiv 2306.01708)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.merger import check_alpha, checked, stream
from mergeability.task_vectors import TaskVectors

# A non-negative float32 sorts as its bits do: 15 leading bits (the sign is 0), then 16 trailing ones.
_LEADING, _TRAILING = 2**15, 2**16


@dataclass(frozen=True)
class Ties:
    """Keep each model's largest entries, elect a sign per entry, average those that have it.

    Trim: with D entries in the scope, keep |τ| ≥ the (D − ⌊density·D⌋)-th smallest magnitude. Elect: the sign
    of the sum over the models; where that is exactly 0, the sign most entries of the scope elected.

    Attributes:
        density: share of entries kept, in (0, 1].
        scope: trim over the whole vector ("global", as in the paper) or per "tensor".
        agg: "mean" of the entries with the elected sign, 0 where there are none, or their "sum".
        alpha: the default scale of M.
    """

    density: float | int = 0.2
    scope: str = "global"
    agg: str = "mean"
    alpha: float | int = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not 0 < self.density <= 1:
            raise UserError(f"Expected density to be in (0, 1], got {self.density}.")
        if self.scope not in ("global", "tensor"):
            raise UserError(f"Expected scope to be 'global' or 'tensor', got {self.scope!r}.")
        if self.agg not in ("mean", "sum"):
            raise UserError(f"Expected agg to be 'mean' or 'sum', got {self.agg!r}.")

    def __call__(self, task_vectors: TaskVectors) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name."""
        task_vectors = checked(task_vectors)
        if self.scope == "tensor":
            return stream(task_vectors, lambda _name, stack: self._merge(lambda: iter([stack]), stack))
        return self._merge_globally(task_vectors)

    def _merge_globally(self, task_vectors: TaskVectors) -> dict[str, Tensor]:
        def stacks() -> Iterator[Tensor]:
            return (task_vectors.stack(name) for name in task_vectors.names)

        thresholds = self._thresholds(stacks)
        majority = _majority_sign(stacks(), thresholds)
        return stream(task_vectors, lambda _name, stack: self._disjoint(stack, thresholds, majority))

    def _merge(self, stacks: Callable[[], Iterable[Tensor]], stack: Tensor) -> Tensor:
        thresholds = self._thresholds(stacks)
        return self._disjoint(stack, thresholds, _majority_sign(stacks(), thresholds))

    def _thresholds(self, stacks: Callable[[], Iterable[Tensor]]) -> Float[Tensor, " T"]:
        size = sum(stack[0].numel() for stack in stacks())
        # At density 1 the rank would be 0: everything is kept.
        return kth_smallest_magnitudes(stacks, max(1, size - math.floor(self.density * size)))

    def _disjoint(self, stack: Tensor, thresholds: Tensor, majority: Tensor) -> Tensor:
        trimmed = _trim(stack, thresholds)
        elected = torch.sign(trimmed.sum(0))
        elected = torch.where(elected == 0, majority, elected)
        agreeing = torch.where(torch.sign(trimmed) == elected, trimmed, 0)
        total = agreeing.sum(0)
        if self.agg == "sum":
            return total
        return total / (agreeing != 0).sum(0).clamp_min(1)


def kth_smallest_magnitudes(stacks: Callable[[], Iterable[Tensor]], k: int) -> Float[Tensor, " T"]:
    """Select each model's k-th smallest magnitude over all parameters, exactly, without concatenating them.

    Two passes: a histogram of the leading half of the bits finds the bin, one of the trailing half within
    that bin finds the value.

    Args:
        stacks: gives the T×shape float32 stacks anew at every call.
        k: the rank, from 1.
    """
    leading, rank = _select_bin((bits >> 16 for bits in _magnitude_bits(stacks)), _LEADING, k)

    def trailing_bits() -> Iterator[list[Tensor]]:
        for bits in _magnitude_bits(stacks):
            within = (bits >> 16) == leading[:, None]
            yield [row[chosen] & (_TRAILING - 1) for row, chosen in zip(bits, within, strict=True)]

    trailing, _ = _select_bin(trailing_bits(), _TRAILING, rank)
    return ((leading << 16) | trailing).to(torch.int32).view(torch.float32)


def _magnitude_bits(stacks: Callable[[], Iterable[Tensor]]) -> Iterator[Tensor]:
    for stack in stacks():
        yield stack.reshape(len(stack), -1).abs().view(torch.int32)


def _select_bin(
    values: Iterable[Iterable[Tensor]], bins: int, rank: int | Int64[Tensor, " T"]
) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
    """Find, for every model, the bin that holds the value of this rank, and the rank within the bin."""
    histograms: Tensor | int = 0
    for rows in values:
        histograms = histograms + torch.stack([torch.bincount(row, minlength=bins) for row in rows])
    cumulative = torch.as_tensor(histograms).cumsum(1)
    wanted = torch.as_tensor(rank).expand(len(cumulative))
    bin_index = (cumulative < wanted[:, None]).sum(1)
    below = torch.where(bin_index > 0, cumulative.gather(1, (bin_index - 1).clamp_min(0)[:, None])[:, 0], 0)
    return bin_index, wanted - below


def _trim(stack: Tensor, thresholds: Tensor) -> Tensor:
    limits = thresholds.reshape(-1, *[1] * (stack.ndim - 1))
    return torch.where(stack.abs() >= limits, stack, 0)


def _majority_sign(stacks: Iterable[Tensor], thresholds: Tensor) -> Tensor:
    """Find the sign of the sum of all elected signs, for entries whose models cancel exactly."""
    total = torch.zeros((), dtype=torch.float64)
    for stack in stacks:
        total += torch.sign(_trim(stack, thresholds).sum(0)).sum(dtype=torch.float64)
    return torch.sign(total).float()
