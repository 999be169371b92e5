"""Isotropic merging in the common subspace (Marczak et al. 2025, arXiv 2502.04959)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.linalg.polar import polar_factor
from mergeability.merging.method import PUBLISHED, check_alpha, checked
from mergeability.merging.published_alpha import isotropic_alpha
from mergeability.merging.stream import ByParameter, Streamed, by_block, mean, total
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class IsoC(ByParameter):
    """Add the task vectors and set all singular values of each matrix to their mean.

    Tensors that are not matrices are averaged.

    Formula: M = mean(σ) U Vᵀ, where Σ τ_t = U diag(σ) Vᵀ.

    Attributes:
        truncate: first truncate each τ_t to rank max(1, ⌊min(m, n)/T⌋), as in the experiments of arXiv 2601.22285.
        alpha: default scale of M: a number, "tuned", or "published": the paper's, by architecture and number of models.

    Raises:
        UserError: `alpha` is neither a finite number, "tuned" nor "published".

    Paper: Marczak et al. 2025, No Task Left Behind: Isotropic Model Merging, arXiv 2502.04959.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import IsoC
        >>> models = tiny_task_vectors(cars=[[3, 0], [0, 1]], svhn=[[2, 0], [0, 1]])
        >>> torch.linalg.svdvals(models["weight"].sum(0)), torch.linalg.svdvals(IsoC()(models)["weight"])
        (tensor([5., 2.]), tensor([3.5000, 3.5000]))
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    truncate: bool = False
    alpha: float | int | str = PUBLISHED

    def __post_init__(self) -> None:
        check_alpha(self.alpha, PUBLISHED)

    def published_alpha(self, task_vectors: TaskVectors) -> tuple[float, bool]:
        """Return the scale and whether it was published; without a published scale it is 1."""
        return isotropic_alpha(task_vectors)

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        task_vectors = checked(models)

        matrices = frozenset(task_vectors.matrices)

        def merge(name: str) -> Tensor:
            if name not in matrices:
                return by_block(task_vectors, name, mean)
            return isotropic(self._sum(task_vectors, name))

        return Streamed(task_vectors, merge)

    def _sum(self, task_vectors: TaskVectors, name: str) -> Tensor:
        if not self.truncate:
            return by_block(task_vectors, name, total)
        rank = max(1, min(task_vectors.shapes[name]) // len(task_vectors.tasks))
        U, S, Vh = task_vectors.svd(name, rank)
        return torch.einsum("tmr,tr,trn->mn", U, S, Vh)


def isotropic(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Set all singular values to their mean; the result is a multiple of the polar factor."""
    factor, values, full_rank = polar_factor(matrix)
    if full_rank:
        return factor * values.mean()
    if not matrix.any():
        return torch.zeros_like(matrix)
    # As in the paper, missing directions are also filled, with the arbitrary vectors of the decomposition.
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return S.mean() * (U @ Vh)
