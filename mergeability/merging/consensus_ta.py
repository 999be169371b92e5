"""Consensus task arithmetic, by TALL masks (Wang et al. 2024, arXiv 2405.07813)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.checks import Count
from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class ConsensusTA(ByParameter):
    """Add the task vectors and keep the entries that matter to several tasks.

    An entry of Σ τ_t = M matters to task t if |τ_t| > threshold·|M − τ_t|. Entries that matter to fewer than `agree`
    tasks are set to 0.

    Formula: M = Σ τ_t where at least `agree` tasks have |τ_t| > threshold · |Σ τ_s − τ_t|, and 0 elsewhere.

    Attributes:
        agree: number of tasks that an entry must matter to, at least 1 and at most the number of models.
        threshold: the paper's λ, at least 0; larger values keep fewer entries.
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `agree`, `threshold` or `alpha` is out of range.

    Paper: Wang et al. 2024, Localizing Task Information for Improved Model Merging and Compression,
    arXiv 2405.07813.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import ConsensusTA
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 2])
        >>> ConsensusTA(agree=2, threshold=0.4)(models)
        {'weight': tensor([6., 0., 0.])}
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    agree: Count = 2
    threshold: float | int = 0.4
    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if isinstance(self.agree, bool) or not isinstance(self.agree, int) or self.agree < 1:
            raise UserError(
                f"Expected the option `agree` to be a number of tasks that is at least 1, got {self.agree!r}."
            )
        if isinstance(self.threshold, bool) or not 0 <= self.threshold < math.inf:
            raise UserError(
                f"Expected the option `threshold` to be a finite number that is at least 0, got {self.threshold!r}."
            )

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access.

        Raises:
            UserError: there are fewer than `agree` models, so that no entry would be kept.
        """
        task_vectors = checked(models)
        if self.agree > len(task_vectors.tasks):
            raise UserError(
                f"The option `agree` is {self.agree}, but there are only {len(task_vectors.tasks)} tasks, so the merge "
                "would be zero. Set `agree` to at most the number of tasks."
            )
        return streamed(task_vectors, self._merge, elementwise=True)

    def _merge(self, _name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
        total = stack.sum(0)
        agreeing = torch.zeros(total.shape, dtype=torch.int32)
        # Process one task at a time, because the masks of all tasks would double the memory.
        for delta in stack:
            agreeing += delta.abs() > (total - delta).abs_().mul_(self.threshold)
        return total.masked_fill_(agreeing < self.agree, 0)
