"""Isotropic merging in common and task-specific subspaces (Marczak et al. 2025, arXiv 2502.04959)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.linalg.decompositions import leading_triplets
from mergeability.linalg.polar import BASES_TOLERANCE, polar_factor
from mergeability.merging.method import PUBLISHED, check_alpha, checked
from mergeability.merging.published_alpha import isotropic_alpha
from mergeability.merging.stream import ByParameter, Streamed, by_block, mean, total
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

Triplets = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class IsoCTS(ByParameter):
    """Assign equal singular values to the common directions of all tasks and to some task-specific ones.

    A matrix with m = min(shape) gets c leading singular triplets of Σ τ_t, and s/T triplets of each task's residual
    (I − U_c U_cᵀ) τ_t, with c + s = m. The concatenated left and right bases are replaced by their polar factors, and
    every singular value by the mean of the m retained ones. Tensors that are not matrices are averaged.

    s is (1 − common)·m, rounded to a multiple of T (halves to even) and at most m. If that leaves no direction for each
    task, the matrix is merged in the common subspace only. Triplets whose singular value is zero up to rounding are
    left out, so zero matrices give zero.

    Formula: M = mean(σ) U_⊥ V_⊥ᵀ, where U_⊥ and V_⊥ are the polar factors of [U_c U_1 … U_T] and [V_c V_1 … V_T].

    Attributes:
        common: share of common directions, in [0, 1].
        alpha: default scale of M: a number, "tuned", or "published": the paper's, by architecture and number of models.

    Raises:
        UserError: `common` is outside [0, 1], or `alpha` is neither a finite number, "tuned" nor "published".

    Paper: Marczak et al. 2025, No Task Left Behind: Isotropic Model Merging, arXiv 2502.04959.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import IsoCTS
        >>> cars, svhn = torch.tensor([4.0, 3.0, 1.0, 0.0]), torch.tensor([4.0, 3.0, 0.0, 2.0])
        >>> models = tiny_task_vectors(cars=torch.diag(cars), svhn=torch.diag(svhn))
        >>> torch.linalg.svdvals(IsoCTS(common=0.5)(models)["weight"])  # the mean of 8, 6, 1 and 2
        tensor([4.2500, 4.2500, 4.2500, 4.2500])
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    common: float | int = 0.8
    alpha: float | int | str = PUBLISHED

    def __post_init__(self) -> None:
        check_alpha(self.alpha, PUBLISHED)
        if isinstance(self.common, bool) or not 0 <= self.common <= 1:
            raise UserError(f"Expected the option `common` to be in [0, 1], got {self.common!r}.")

    def published_alpha(self, task_vectors: TaskVectors) -> tuple[float, bool]:
        """Return the published scale and True, or 1 and False if no scale was published."""
        return isotropic_alpha(task_vectors)

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        task_vectors = checked(models)

        matrices = frozenset(task_vectors.matrices)

        def merge(name: str) -> Tensor:
            if name not in matrices:
                return by_block(task_vectors, name, mean)
            return self._merge(task_vectors, name)

        return Streamed(task_vectors, merge)

    def _merge(self, task_vectors: TaskVectors, name: str) -> Float[Tensor, "m n"]:
        smaller, count = min(task_vectors.shapes[name]), len(task_vectors.tasks)
        own = self._directions_per_task(smaller, count)
        shared = leading_triplets(by_block(task_vectors, name, total), smaller - own * count)
        # One model at a time.
        parts = (
            [_residual_triplets(delta, shared[0], own) for delta in task_vectors.each(name)] if own else []
        )
        parts.append(shared)
        bases = torch.cat([U for U, _, _ in parts], dim=1), torch.cat([Vh for _, _, Vh in parts])
        left, right = (polar_factor(basis, tolerance=BASES_TOLERANCE)[0] for basis in bases)
        return torch.cat([S for _, S, _ in parts]).mean() * (left @ right)

    def _directions_per_task(self, smaller: int, tasks: int) -> int:
        """Return the number of each task's own directions, s/T, of m."""
        rest = smaller - math.floor(self.common * smaller)
        # At most m/T directions per task, so that the concatenated bases have at most m columns.
        return min(round(rest / tasks), smaller // tasks)


def _residual_triplets(delta: Float[Tensor, "m n"], U: Float[Tensor, "m c"], rank: int) -> Triplets:
    """Decompose what the common left directions leave of one task's matrix."""
    left, values, right = leading_triplets(delta - U @ (U.mT @ delta), rank)
    # For a matrix within the common subspace, the residual is only rounding error and has no direction.
    rounding = math.sqrt(max(delta.shape)) * torch.finfo(torch.float32).eps * delta.norm()
    found = values > rounding
    return left * found, values * found, right * found[:, None]
