"""TSV-Merge: task singular vectors, decorrelated (Gargiulo et al. 2025, arXiv 2412.00081)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.linalg.polar import polar_factor_of_bases
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, by_block, mean
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class TSVM(ByParameter):
    """Concatenate the leading singular triplets of all tasks and orthogonalise them across tasks.

    Each m×n matrix gets r = ⌊min(m, n)/T⌋ triplets of every task. The concatenated left and right bases are replaced by
    their polar factors, and the matrix is recomposed with the tasks' own singular values. Tensors that are not
    matrices, and matrices too small for one triplet per task, are averaged.

    Formula: M = U_⊥ diag(σ) V_⊥ᵀ, where U_⊥ and V_⊥ are the polar factors of [U_1 … U_T] and [V_1 … V_T].

    Attributes:
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `alpha` is neither a finite number nor "tuned".

    Paper: Gargiulo et al. 2025, Task Singular Vectors, arXiv 2412.00081.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import TSVM
        >>> models = tiny_task_vectors(cars=[[4, 0], [0, 1]], svhn=[[1, 0], [0, 3]])
        >>> torch.linalg.svdvals(TSVM()(models)["weight"])  # the leading singular value of each task
        tensor([4., 3.])
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        task_vectors = checked(models)

        matrices = frozenset(task_vectors.matrices)

        def merge(name: str) -> Tensor:
            rank = min(task_vectors.shapes[name], default=0) // len(task_vectors.tasks)
            if name not in matrices or rank == 0:
                return by_block(task_vectors, name, mean)
            return _recompose(*task_vectors.svd(name, rank))

        return Streamed(task_vectors, merge)


def _recompose(
    U: Float[Tensor, "T m r"], S: Float[Tensor, "T r"], Vh: Float[Tensor, "T r n"]
) -> Float[Tensor, "m n"]:
    """Multiply the decorrelated bases of all tasks with their singular values."""
    # The vectors of a zero singular value are arbitrary and must not affect the other directions.
    tolerance = S[:, :1] * max(U.shape[1], Vh.shape[2]) * torch.finfo(S.dtype).eps
    zero = S.le(tolerance)
    left = polar_factor_of_bases(U.masked_fill(zero[:, None, :], 0))
    right = polar_factor_of_bases(Vh.masked_fill(zero[:, :, None], 0).mT)
    *first, last = left
    # multi_dot chooses the cheapest order of the factors, which are thin or small.
    return torch.linalg.multi_dot([*first, last * S.flatten(), *(part.mT for part in reversed(right))])
