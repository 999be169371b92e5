"""Choose the sets of models to merge: all pairs, some pairs, or sets of any size."""

import itertools
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergeability.checks import clean_name
from mergeability.errors import UserError

logger = logging.getLogger(__name__)

# More sets than this are merged only if their number is set explicitly.
MOST_UNASKED = 1000


@dataclass(frozen=True)
class MergeSets:
    """Specify which sets of models are merged.

    Attributes:
        pairs: the pairs to merge, [[a, b], …]; all of them when None.
        arity: models in a set, from 2; "all" for the whole suite; or several of these.
        sets: how many sets of each arity to draw at random, without repetition; every one when None.
        seed: seed of the draw, which depends on it, the arity and the tasks' names alone.
        many_pairs: whether all pairs are listed, however many there are.

    Raises:
        UserError: these are not pairs, or an arity or a count is no such number.
    """

    pairs: Sequence[Sequence[str]] | None = None
    arity: int | str | Sequence[int | str] = 2
    sets: int | None = None
    seed: int = 0
    many_pairs: bool = False

    def __post_init__(self) -> None:
        if not self._arities:
            raise UserError(
                "Expected arity to be a number of at least 2, 'all', or a list of such values, got an empty list."
            )
        for arity in self._arities:
            if arity != "all" and (not _is_whole(arity) or arity < 2):
                raise UserError(f"Expected arity to be a number of at least 2, or 'all', got {arity!r}.")
        if self.sets is not None and (not _is_whole(self.sets) or self.sets < 1):
            raise UserError(f"Expected sets=… to be a positive whole number, got {self.sets!r}.")
        if self.pairs is not None:
            self._check_pairs(self.pairs)

    @property
    def _arities(self) -> list[Any]:
        if isinstance(self.arity, Sequence) and not isinstance(self.arity, str):
            return list(self.arity)
        return [self.arity]

    def _check_pairs(self, pairs: Any) -> None:
        is_list = isinstance(pairs, Sequence) and not isinstance(pairs, str) and len(pairs) > 0
        if not is_list or not all(_is_pair(pair) for pair in pairs):
            raise UserError(
                f"Expected pairs of different tasks, such as pairs='[[a, b], [a, c]]', got {pairs!r}."
            )
        if self._arities != [2] or self.sets is not None:
            raise UserError(
                "Expected either pairs=…, or arity=… with sets=…, got both. Remove pairs=…, or remove"
                " arity=… and sets=…."
            )

    def choose(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the sets; the tasks of each set are in the order of `tasks`.

        Raises:
            UserError: a pair names an unknown task, a set is larger than the suite, or there are very many sets.
        """
        if self.pairs is not None:
            return self._named_pairs(tasks, self.pairs)
        chosen: list[tuple[str, ...]] = []
        for arity in self._arities:
            chosen += self._of_size(tasks, len(tasks) if arity == "all" else int(arity))
        return list(dict.fromkeys(chosen))

    def _named_pairs(self, tasks: Sequence[str], pairs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        # Compared as text, because YAML reads a task named 1 as a number.
        named = [tuple(clean_name(task, "each name in pairs") for task in pair) for pair in pairs]
        unknown = sorted({task for pair in named for task in pair} - set(tasks))
        if unknown:
            raise UserError(
                f"pairs=… contains {', '.join(unknown)}, but the suite contains only {', '.join(tasks)}."
            )
        return list(dict.fromkeys(_ordered(pair, tasks) for pair in named))

    def _of_size(self, tasks: Sequence[str], size: int) -> list[tuple[str, ...]]:
        if size > len(tasks):
            raise UserError(f"arity={size} exceeds the {len(tasks)} models of the suite.")
        count = math.comb(len(tasks), size)
        if self.sets is None or self.sets >= count:
            if self.sets is None and count > MOST_UNASKED and not (size == 2 and self.many_pairs):
                raise UserError(
                    f"{len(tasks)} models form {count} sets of {size}. Choose how many of these sets to merge, such as"
                    f" sets=200{', or evaluate=200, which predicts the others' if size == 2 else ''}."
                )
            if self.sets is not None and self.sets > count:
                logger.info(
                    "Only %d sets of size %d can be formed from the %d models, so every set is merged.",
                    count,
                    size,
                    len(tasks),
                )
            return list(itertools.combinations(tasks, size))
        generator = random.Random(f"{self.seed}\n{size}\n" + "\n".join(sorted(tasks)))
        drawn: dict[tuple[str, ...], None] = {}
        while len(drawn) < self.sets:
            drawn[_ordered(generator.sample(sorted(tasks), size), tasks)] = None
        return list(drawn)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, Sequence)
        and not isinstance(pair, str)
        and len(pair) == 2
        and str(pair[0]) != str(pair[1])
    )


def _ordered(names: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=list(tasks).index))
