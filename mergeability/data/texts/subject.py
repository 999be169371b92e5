"""Define the subjects of text tasks; the texts are collected from an installed package or generated from templates."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from typing import Any, Protocol

from mergeability.data.texts.draws import Draws
from mergeability.errors import UserError

# Templates that give this many known texts in a row have few new ones left.
_PATIENCE = 200


class Subject(Protocol):
    """Define the protocol of the subject of a text task: the classes, and the texts that can be drawn for each class.

    Examples:
        >>> from mergeability.data.texts import find_subject
        >>> find_subject("negation").classes
        ('affirms', 'denies')
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        ...

    def candidates(self, count: int, draws: Draws) -> list[list[str]]:
        """Return up to `count` texts of each class in random order; no text is repeated."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return a JSON-able record of everything that determines the texts, except the arguments of `candidates`."""
        ...


@dataclass(frozen=True)
class Collected:
    """Hold a subject whose texts come from an installed package or from the standard library.

    A text that several classes contain is left out, because it has no label.

    Attributes:
        classes: names of the classes, in label order.
        collect: returns class name → texts; repetitions are allowed.
        version: incremented when the selection of texts changes.

    Examples:
        >>> from mergeability.data.texts import Collected
        >>> from mergeability.data.texts.draws import Draws
        >>> subject = Collected(("cat", "dog"), lambda: {"cat": ["meow", "purr", "hello"], "dog": ["woof", "Hello"]})
        >>> [sorted(texts) for texts in subject.candidates(5, Draws(0))]
        [['meow', 'purr'], ['woof']]
    """

    classes: tuple[str, ...]
    collect: Callable[[], Mapping[str, Iterable[str]]]
    version: int = 1

    def candidates(self, count: int, draws: Draws) -> list[list[str]]:
        """Return up to `count` texts of each class in random order."""
        return [draws.shuffled(texts)[:count] for texts in self._texts]

    def identity(self) -> dict[str, Any]:
        """Return the version of the subject and the SHA-256 of all texts.

        The texts depend on the installed version of the package that contains them.
        """
        return {"version": self.version, "sha256": sha256(json.dumps(self._texts).encode()).hexdigest()}

    @cached_property
    def _texts(self) -> list[list[str]]:
        found = self.collect()
        # Sorting makes the order independent of that of files and sets.
        distinct = [{key(text): text for text in sorted(found[name])} for name in self.classes]
        classes_with = Counter(one for texts in distinct for one in texts)
        return [sorted(text for one, text in texts.items() if classes_with[one] == 1) for texts in distinct]


@dataclass(frozen=True)
class Written:
    """Hold a subject whose texts are templates filled with random words.

    Attributes:
        classes: names of the classes, in label order.
        write: function (class name, draws) → a text of that class.
        version: incremented when the texts change.

    Examples:
        >>> from mergeability.data.texts import Written
        >>> from mergeability.data.texts.draws import Draws
        >>> subject = Written(("even", "odd"), lambda name, draws: str(2 * draws.integer(0, 4) + (name == "odd")))
        >>> [sorted(texts) for texts in subject.candidates(10, Draws(0))]
        [['0', '2', '4', '6', '8'], ['1', '3', '5', '7', '9']]
    """

    classes: tuple[str, ...]
    write: Callable[[str, Draws], str]
    version: int = 1

    def candidates(self, count: int, draws: Draws) -> list[list[str]]:
        """Return up to `count` texts of each class; fewer only if the templates yield no more."""
        known: set[str] = set()
        return [self._of_class(name, count, draws, known) for name in self.classes]

    def identity(self) -> dict[str, Any]:
        """Return the version, which is incremented when the texts change."""
        return {"version": self.version}

    def _of_class(self, name: str, count: int, draws: Draws, known: set[str]) -> list[str]:
        found: list[str] = []
        repeated = 0
        while len(found) < count and repeated < _PATIENCE:
            text = self.write(name, draws)
            if key(text) in known:
                repeated += 1
                continue
            repeated = 0
            known.add(key(text))
            found.append(text)
        return found


def key(text: str) -> str:
    """Return a text in lower case, without accents or repeated spaces; uncased encoders ignore these differences."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return " ".join(plain.casefold().split())


def optional_package(module: str, package: str) -> Any:
    """Import a module of an optional package.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"These texts come from {package}, which is not installed. Run: uv pip install 'mergeability[text]'"
        ) from error


def short(texts: Iterable[str], fewest: int = 1, most: int = 20) -> Sequence[str]:
    """Return the texts that have between `fewest` and `most` words; repeated spaces become single spaces."""
    words = [text.split() for text in texts]
    return [" ".join(one) for one in words if fewest <= len(one) <= most]
