"""Random choices for texts, from one seeded stream."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from mergeability.random import seeded_generator

T = TypeVar("T")


class Draws:
    """Draw choices, integers and permutations from one stream of random numbers.

    Args:
        parts: the sequence that determines the stream.

    Examples:
        >>> from mergeability.data.texts.draws import Draws
        >>> sorted(Draws("example", 0).shuffled(["a", "b", "c"]))
        ['a', 'b', 'c']
    """

    def __init__(self, *parts: str | int) -> None:
        # torch's streams are the same on every platform; those of `random` and NumPy may change with a version.
        self._generator = seeded_generator(*parts)

    def integer(self, low: int, high: int) -> int:
        """Return an integer in low..high, both included."""
        return int(torch.randint(low, high + 1, (1,), generator=self._generator))

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the given options, drawn at random."""
        return options[self.integer(0, len(options) - 1)]

    def chance(self, probability: float) -> bool:
        """Return True with the given probability in [0, 1], otherwise False."""
        return bool(torch.rand(1, generator=self._generator) < probability)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        order = torch.randperm(len(items), generator=self._generator)
        return [items[index] for index in order.tolist()]
