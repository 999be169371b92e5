"""Merge in one pass over the parameters, given a rule for one parameter."""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.differences import BlockWork, Result
from mergeability.task_vectors.parameters import is_running_statistic
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.threads import one_openmp_thread

# From a parameter's name and its stack of T deltas to that parameter of the merged task vector.
Rule = Callable[[str, Tensor], Tensor]


# Up to so many models are added one after the other.
_FEW = 4


class Streamed(Mapping[str, Tensor]):
    """A merged task vector M whose tensors are computed on each access, so that memory holds one of them.

    Running statistics of batch norms are averaged for every method. Tied weights are merged alike.

    Attributes:
        shapes: name → shape.
        one_thread: whether the operations are so short that threads of PyTorch slow them down.
        rule: merges a block of any flattened parameter; None if `merge` needs whole parameters.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import Streamed, by_block, mean
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5])
        >>> merged = Streamed(models, lambda name: by_block(models, name, mean), one_thread=True)
        >>> merged["weight"], list(merged)
        (tensor([ 3.0000, -1.0000,  2.5000]), ['weight'])
    """

    def __init__(
        self,
        task_vectors: TaskVectors,
        merge: Callable[[str], Tensor],
        *,
        one_thread: bool = False,
        rule: Rule | None = None,
    ) -> None:
        """Merge the parameter of a name by `merge`, which reads the models itself, or blocks of it by `rule`."""
        shapes = task_vectors.shapes
        self.shapes = {name: shapes[name] for name in (*task_vectors.names, *task_vectors.buffers)}
        self.one_thread, self.rule = one_thread, rule
        self._task_vectors, self._merge = task_vectors, merge

    def __getitem__(self, name: str) -> Tensor:
        """Compute the tensor of one parameter or running statistic."""
        if name not in self.shapes:
            raise KeyError(name)
        if is_running_statistic(name):
            return by_block(self._task_vectors, name, mean)
        return self._merge(self._task_vectors.tied.get(name, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    # As Mapping defines it, a test for a name would compute its tensor.
    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    # Compare by identity, because Mapping compares values, which would compute every tensor.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def has_blocks(self, name: str) -> bool:
        """Whether there is a tensor of this name that `map_blocks` can compute."""
        return name in self.shapes and (self.rule is not None or is_running_statistic(name))

    def map_blocks(self, name: str, work: BlockWork[Result]) -> Iterator[Result]:
        """Apply a function to blocks of one flattened tensor, and return the results in order.

        Args:
            name: a tensor that `has_blocks`.
            work: called with the range, the base's values and the merged ones, in float32, which are overwritten
                afterwards. Several threads may call it at a time.
        """
        rule = mean if is_running_statistic(name) else self.rule
        assert rule is not None
        own = self._task_vectors.tied.get(name, name)
        return self._task_vectors.map_blocks(
            own, lambda part, base, stack: work(part, base, rule(own, stack))
        )

    def computed(self) -> dict[str, Tensor]:
        """Compute all tensors; those of tied weights once."""
        merged: dict[str, Tensor] = {}
        tied = self._task_vectors.tied
        with one_openmp_thread() if self.one_thread else contextlib.nullcontext():
            merged = {name: self[name] for name in self if name not in tied}
        return {name: merged[name] if name in merged else merged[tied[name]].clone() for name in self}


@runtime_checkable
class Streams(Protocol):
    """Protocol of methods that can merge one parameter at a time without keeping the merged ones.

    Examples:
        >>> from mergeability.merging import Average, RegMean
        >>> from mergeability.merging.stream import Streams
        >>> isinstance(Average(), Streams), isinstance(RegMean(), Streams)
        (True, False)
    """

    def streamed(self, models: TaskVectors | Profiles, /) -> Mapping[str, Tensor]:
        """Return M as a mapping whose tensors are computed on access."""
        ...


class ByParameter(ABC):
    """Base class of methods that merge parameter by parameter; each defines `streamed`.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import ByParameter, Streamed
        >>> class Largest(ByParameter):
        ...     def streamed(self, models, /):
        ...         return Streamed(models, lambda name: models[name].amax(0))
        >>> Largest()(tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5]))
        {'weight': tensor([4., 1., 5.])}
    """

    @abstractmethod
    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose tensors are computed on access."""

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name."""
        return self.streamed(models).computed()


def stream(task_vectors: TaskVectors, rule: Rule, *, elementwise: bool = False) -> dict[str, Tensor]:
    """Merge one parameter at a time: apart from the result, memory holds only one layer of each model.

    Running statistics of batch norms are averaged for every rule. Tied weights are merged once.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        elementwise: whether each entry of the result depends only on the same entry of the models. Then `rule` is
            called with blocks of the flattened parameter, T × elements, by several threads at a time.

    Returns:
        M in float32, by parameter name.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import stream
        >>> models = tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5])
        >>> stream(models, lambda name, stack: stack.amax(0), elementwise=True)
        {'weight': tensor([4., 1., 5.])}
    """
    return streamed(task_vectors, rule, elementwise=elementwise).computed()


def streamed(task_vectors: TaskVectors, rule: Rule, *, elementwise: bool = False) -> Streamed:
    """Merge as `stream` does, but compute each tensor only on access.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        elementwise: as for `stream`.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import mean, streamed
        >>> streamed(tiny_task_vectors(cars=[4, 1], svhn=[2, -3]), mean, elementwise=True)["weight"]
        tensor([ 3., -1.])
    """

    def merge(name: str) -> Tensor:
        if elementwise:
            return by_block(task_vectors, name, rule)
        return rule(name, task_vectors[name])

    # Blocks are read by several threads, and are too small for several more.
    return Streamed(task_vectors, merge, one_thread=elementwise, rule=rule if elementwise else None)


def by_block(task_vectors: TaskVectors, name: str, rule: Rule) -> Tensor:
    """Merge one parameter by an element-wise rule, in blocks.

    Args:
        task_vectors: the models.
        name: the parameter.
        rule: merges a block of the flattened parameter, T × elements.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.stream import by_block, mean
        >>> by_block(tiny_task_vectors(cars=[[4, 1]], svhn=[[2, -3]]), "weight", mean)
        tensor([[ 3., -1.]])
    """
    merged = torch.empty(task_vectors.shapes[name])
    flat = merged.reshape(-1)

    def fill(part: slice, _base: Tensor, stack: Tensor) -> None:
        flat[part] = rule(name, stack)

    deque(task_vectors.map_blocks(name, fill), maxlen=0)
    return merged


def total(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Add the deltas, as `TaskArithmetic` does.

    Args:
        _name: name of the parameter, not used.
        stack: deltas of T models, T × the parameter's shape.

    Examples:
        >>> import torch
        >>> from mergeability.merging.stream import total
        >>> total("weight", torch.tensor([[4.0, 1.0], [2.0, -3.0]]))
        tensor([ 6., -2.])
    """
    return _sum(stack)


def mean(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Average the deltas; `Average` does this, and other methods do so for parameters that they do not treat specially.

    Args:
        _name: name of the parameter, not used.
        stack: deltas of T models, T × the parameter's shape.

    Examples:
        >>> import torch
        >>> from mergeability.merging.stream import mean
        >>> mean("weight", torch.tensor([[4.0, 1.0], [2.0, -3.0]]))
        tensor([ 3., -1.])
    """
    return _sum(stack).div_(len(stack))


def _sum(stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Add rows as `stack.sum(0)` does, in new memory."""
    if not 2 <= len(stack) <= _FEW:
        return stack.sum(0)
    # Row by row in half the time; PyTorch adds up to four rows in the same order.
    added = stack[0] + stack[1]
    for row in stack[2:]:
        added += row
    return added
