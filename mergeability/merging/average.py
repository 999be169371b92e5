"""Weight averaging (Wortsman et al. 2022, arXiv 2203.05482)."""

from dataclasses import dataclass
from typing import ClassVar

from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, mean, streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class Average(ByParameter):
    """Average the task vectors.

    Formula: M = (1/T) Σ τ_t.

    Attributes:
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `alpha` is neither a finite number nor "tuned".

    Paper: Wortsman et al. 2022, Model soups, arXiv 2203.05482.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Average
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 0])
        >>> Average()(models)
        {'weight': tensor([ 3., -1.,  0.])}
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access."""
        return streamed(checked(models), mean, elementwise=True)
