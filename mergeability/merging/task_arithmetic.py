"""Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)."""

from dataclasses import dataclass
from typing import ClassVar

from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, streamed, total
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class TaskArithmetic(ByParameter):
    """Add the task vectors.

    Formula: M = Σ τ_t.

    Attributes:
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `alpha` is neither a finite number nor "tuned".

    Paper: Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv 2212.04089.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import TaskArithmetic
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 0])
        >>> TaskArithmetic()(models)
        {'weight': tensor([ 6., -2.,  0.])}
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    alpha: float | int | str = 0.3

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        return streamed(checked(models), total, elementwise=True)
