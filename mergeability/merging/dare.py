"""DARE: drop and rescale before merging (Yu et al. 2024, arXiv 2311.03099)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mergeability.checks import Seed
from mergeability.errors import UserError
from mergeability.merging.method import MergeMethod, checked
from mergeability.merging.stream import Streams, mean, stream, streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class Thinning:
    """Drop each entry with probability p and divide the rest by 1 − p.

    Attributes:
        p: probability of dropping an entry, in [0, 1).
        seed: seed of the masks.

    Examples:
        >>> import torch
        >>> from mergeability.merging.dare import Thinning
        >>> thin = Thinning(p=0.5, seed=0)
        >>> whole = thin("cars", "weight", torch.ones(4))
        >>> part = thin.by_part("cars", "weight")
        >>> torch.equal(torch.cat([part(torch.ones(1)), part(torch.ones(3))]), whole)
        True
    """

    p: float | int
    seed: int

    def __call__(self, task: str, name: str, delta: Tensor) -> Tensor:
        """Apply DARE to one tensor of one model."""
        return self.by_part(task, name)(delta)

    def by_part(self, task: str, name: str) -> Callable[[Tensor], Tensor]:
        """Return a function that applies DARE to consecutive parts of one tensor of one model."""
        # A separate stream per tensor, so that masks do not depend on the order of reading or on the other models.
        text = f"{self.seed}\n{task}\n{name}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1)

        def thin(delta: Tensor) -> Tensor:
            # Numbers are drawn one after the other, so that parts get the same ones as the whole.
            kept = torch.rand(delta.shape, generator=generator) >= self.p
            return torch.where(kept, delta / (1 - self.p), 0)

        return thin


@dataclass(frozen=True)
class Dare:
    """Drop each entry of each τ_t with probability p, divide the rest by 1 − p, then merge by another method.

    Whether an entry is dropped depends only on the seed, the task name, the tensor name and its position, not on the
    other models or any global random state.

    Formula: M = merge of the vectors m_t ⊙ τ_t / (1 − p), where m_t is 0 with probability p and 1 otherwise.

    Attributes:
        p: probability of dropping an entry, in [0, 1).
        seed: seed of the masks.
        then: method that merges the remaining entries; plain averaging when None. It also defines `alpha`.

    Raises:
        UserError: `p` is outside [0, 1).

    Paper: Yu et al. 2024, Language Models are Super Mario, arXiv 2311.03099.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Dare, TaskArithmetic
        >>> models = tiny_task_vectors(cars=torch.ones(1000), svhn=torch.ones(1000))
        >>> Dare(p=0.5, then=TaskArithmetic())(models)["weight"].unique()
        tensor([0., 2., 4.])
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = None

    p: float | int = 0.9
    seed: Seed = 0
    then: MergeMethod | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise UserError(f"Expected p to be in [0, 1), got {self.p}.")

    @property
    def alpha(self) -> float | int | str:
        """The default scale of the merged task vector M.

        It is the default scale of the method in `then`, or 1 if `then` is None.
        """
        return 1.0 if self.then is None else self.then.alpha

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name."""
        thinned = self._thinned(models)
        return stream(thinned, mean, elementwise=True) if self.then is None else self.then(thinned)

    def streamed(self, models: TaskVectors | Profiles, /) -> Mapping[str, Tensor]:
        """Return M as a mapping of float32 tensors, which are computed on access if the method `then` supports this."""
        thinned = self._thinned(models)
        if self.then is None:
            return streamed(thinned, mean, elementwise=True)
        return self.then.streamed(thinned) if isinstance(self.then, Streams) else self.then(thinned)

    def drop(self, task: str, name: str, delta: Tensor) -> Tensor:
        """Drop and rescale the entries of one tensor of one model's task vector."""
        return Thinning(self.p, self.seed)(task, name, delta)

    def _thinned(self, models: TaskVectors | Profiles) -> TaskVectors:
        return checked(models).transformed(Thinning(self.p, self.seed))
