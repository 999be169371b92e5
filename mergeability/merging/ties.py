"""TIES: trim, elect signs, disjoint merge (Yadav et al. 2023, arXiv 2306.01708)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Rule, Streamed, by_block
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.magnitudes import check_density, magnitude_thresholds, smallest_value
from mergeability.task_vectors.vectors import TaskVectors

# Number of elements of every model merged at a time.
_BLOCK = 2**16


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
        if self.scope == "tensor":
            return Streamed(
                task_vectors, lambda name: self._merge_tensor(task_vectors, name), one_thread=True
            )
        return Streamed(task_vectors, self._global_merge(task_vectors), one_thread=True)

    def _merge_tensor(self, task_vectors: TaskVectors, name: str) -> Tensor:
        size = task_vectors.parameters[name].size
        rank = max(1, size - math.floor(self.density * size))
        # One model at a time; an empty tensor has no threshold, and nothing to merge.
        found = [smallest_value(delta.flatten().abs(), rank) for delta in task_vectors.each(name) if size > 0]
        balances, again = [], []
        rule = self._rule(torch.tensor(found), balances, again)
        merged = by_block(task_vectors, name, rule)
        return (
            by_block(task_vectors, name, self._rule(torch.tensor(found), [], [], _sign(sum(balances))))
            if again
            else merged
        )

    def _global_merge(self, task_vectors: TaskVectors) -> Callable[[str], Tensor]:
        found = magnitude_thresholds(task_vectors, self.density)
        thresholds = torch.tensor([float(found[task]) for task in task_vectors.tasks])
        balances: dict[str, int] = {}
        majority: list[int] = []

        def elect(name: str) -> tuple[Tensor, bool]:
            signs, cancelled = [], []
            rule = self._rule(thresholds, signs, cancelled, *majority)
            merged = by_block(task_vectors, name, rule)
            balances[name] = sum(signs)
            return merged, bool(cancelled)

        def merge(name: str) -> Tensor:
            merged, cancelled = elect(name)
            if not cancelled or majority:
                return merged
            # Where models cancel exactly, the majority sign decides, which is known only after all tensors were read.
            names = [one for one in task_vectors.names if one not in task_vectors.tied]
            for one in names:
                if one not in balances:
                    elect(one)
            majority.append(_sign(sum(balances[one] for one in names)))
            return elect(name)[0]

        return merge

    def _rule(
        self, thresholds: Float[Tensor, " T"], balances: list[int], again: list[str], majority: int = 0
    ) -> Rule:
        """Return the rule for a block, which records the sums of elected signs and where the majority must decide."""

        def merge(name: str, stack: Tensor) -> Tensor:
            merged, balance, undecided = self._elect(stack, thresholds, majority)
            balances.append(balance)
            again.extend([name] if undecided else [])
            return merged

        return merge

    def _elect(
        self, stack: Float[Tensor, "T *shape"], thresholds: Float[Tensor, " T"], majority: int = 0
    ) -> tuple[Float[Tensor, "*shape"], int, bool]:
        """Trim, elect and merge one tensor, block by block, so that each stays in the processor's cache.

        Returns:
            The merged tensor; the sum of the elected signs; and whether kept entries cancelled to exactly 0,
            so that they need the majority's sign.
        """
        merged = torch.empty(stack[0].shape)
        balance, undecided = 0, False
        rows = stack.reshape(len(stack), -1)
        for block, out in zip(rows.split(_BLOCK, dim=1), merged.reshape(-1).split(_BLOCK), strict=True):
            kept = block.abs() >= thresholds[:, None]
            trimmed = block * kept
            elected = trimmed.sum(0).sign_()
            balance += int(elected.sum())
            # Entries that no model keeps are 0 in any case; only kept entries that cancel need a sign.
            cancelled = (elected == 0) & _any(kept)
            if cancelled.any():
                undecided = True
                elected.masked_fill_(cancelled, float(majority))
            # Flip signs so that entries with the elected sign are positive.
            trimmed.mul_(elected)
            count = (trimmed > 0).sum(0, dtype=torch.float32) if self.agg == "mean" else None
            total = trimmed.clamp_min_(0).sum(0)
            torch.mul(total if count is None else total.div_(count.clamp_min_(1)), elected, out=out)
        return merged, balance, undecided


def _any(rows: Tensor) -> Tensor:
    """Return where any row is true; a loop over rows is faster than a reduction over the first axis."""
    found = rows[0].clone()
    for row in rows[1:]:
        found |= row
    return found


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
