"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)."""

from dataclasses import dataclass

from torch import Tensor

from mergeability.merging.method import check_alpha, checked, stream
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class TaskArithmetic:
    """Add the task vectors: M = Σ τ_t.

    Attributes:
        alpha: the default scale of M.
    """

    alpha: float | int | str = 0.3

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def __call__(self, task_vectors: TaskVectors) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name."""
        return stream(checked(task_vectors), lambda _name, stack: stack.sum(0))
