"""Transforms of task vectors, such as dropping entries, that are applied when deltas are read."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

# (task, tensor, delta) → the delta to use instead
Transform = Callable[[str, str, Tensor], Tensor]


@runtime_checkable
class TransformByPart(Protocol):
    """A transform that can also be applied to a flattened tensor part by part."""

    def by_part(self, task: str, name: str) -> Callable[[Tensor], Tensor]:
        """Return a function that transforms one flattened tensor part by part.

        It is called with consecutive parts, beginning with the first element.
        """
        ...
