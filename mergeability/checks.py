"""Check values and names given by users.

The names below are annotations: what a class or function of `conf` declares for an argument is what the commands check
before anything is made of a configuration.
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard

from mergeability.errors import UserError, shown


@dataclass(frozen=True)
class Bounds:
    """Hold the lowest and the highest allowed value of a number; `above` excludes the lowest value."""

    low: float | int = -math.inf
    high: float | int = math.inf
    above: bool = False

    def admits(self, value: float | int) -> bool:
        """Return whether a number lies in the range.

        >>> Bounds(0, 1).admits(0), Bounds(0, 1, above=True).admits(0), Bounds(0, 1).admits(float("nan"))
        (True, False, False)
        """
        return (self.low < value if self.above else self.low <= value) and value <= self.high


@dataclass(frozen=True)
class OnePart:
    """Mark text that must be the name of one file or folder: it contains no separators and is not `..`."""


# The limit of signed 32-bit integers, which C libraries use for counts; no setting needs more.
_MOST = 2**31 - 1

Count = Annotated[int, Bounds(1, _MOST)]
Whole = Annotated[int, Bounds(0, _MOST)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
Number = Annotated[float | int, Bounds()]
Share = Annotated[float | int, Bounds(0, 1)]
Finite = Annotated[float | int, Bounds(-1e300, 1e300)]
Positive = Annotated[float | int, Bounds(0, 1e300, above=True)]
NotNegative = Annotated[float | int, Bounds(0, 1e300)]
PathPart = Annotated[str, OnePart()]


# Blanks and invisible characters, such as a byte-order mark.
_BLANK_ENDS = re.compile(r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$")


def is_number(value: Any) -> TypeGuard[float | int]:
    """Return whether a value is a finite number; False for booleans.

    >>> is_number(0.5), is_number(True), is_number(float("nan")), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> TypeGuard[int]:
    """Return whether a value is a whole number of at least `least`; False for booleans.

    >>> is_count(3), is_count(0, least=1), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_path_part(text: str) -> bool:
    r"""Return whether text has no control characters and can name a file or folder on every operating system.

    >>> is_path_part("svhn"), is_path_part("../svhn"), is_path_part(".."), is_path_part("a\\b"), is_path_part("")
    (True, False, False, False, False)
    """
    return (
        text.strip() not in ("", ".", "..")
        and len(text.encode("utf-8", "replace")) <= 200
        and not set(text) & set("/\\")
        and all(one.isprintable() for one in text)
    )


def check_path_part(what: str, text: str) -> None:
    """Check that a name can be the name of a file or folder.

    Raises:
        UserError: it is not a valid file name.
    """
    if not is_path_part(text):
        raise UserError(
            f"Expected the {what} to be a valid file name, without / or \\ and at most 200 bytes long, got "
            f"{shown(text)}: rename it."
        )


def clean_name(name: Any, what: str = "a name") -> str:
    r"""Normalise the name of a task, model or class: strip surrounding white space and convert to Unicode NFC.

    Numbers are valid names. YAML reads words such as `no` as booleans, which are rejected.

    Args:
        name: the name as typed or read.
        what: the kind of object that it names, for the message.

    Raises:
        UserError: it is neither text nor a number, or consists only of white space.

    >>> clean_name(" cafe\u0301 "), clean_name(7)
    ('café', '7')
    """
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise UserError(f"Expected {what} to be text, got {name!r}. Put it in quotes.")
    cleaned = _BLANK_ENDS.sub("", unicodedata.normalize("NFC", str(name)))
    if not cleaned:
        raise UserError(f"Expected {what}, got the empty text {name!r}.")
    return cleaned


def clean_names(names: Iterable[Any], what: str) -> dict[str, Any]:
    """Normalise names, check that they differ, and return a mapping from normalised to given names.

    Raises:
        UserError: a name is invalid, or two names are equal after normalisation.

    >>> clean_names(["a ", "b"], "tasks")
    {'a': 'a ', 'b': 'b'}
    """
    found: dict[str, Any] = {}
    for name in names:
        cleaned = clean_name(name, f"the name of each of the {what}")
        if cleaned in found:
            raise UserError(
                f"Expected the names of the {what} to be distinct, got {cleaned!r} twice"
                + (
                    ", in spellings that differ only in white space or in the Unicode form of accents"
                    if name != found[cleaned]
                    else ""
                )
                + ". Rename one of them."
            )
        found[cleaned] = name
    return found


def lookalikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of normalised names that differ only in case or white space.

    >>> lookalikes(["Pets", "pets", "sea lion", "sealion", "dog"])
    [('Pets', 'pets'), ('sea lion', 'sealion')]
    """
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        earlier = first.setdefault("".join(name.split()).casefold(), name)
        if earlier != name:
            pairs.append((earlier, name))
    return pairs


def alike_remarks(names: Iterable[str], what: str) -> list[str]:
    """Return one message per pair of names that differ only in case or white space."""
    return [
        f"The {what} {one!r} and {other!r} differ only in case or white space; they are treated as different."
        for one, other in lookalikes(names)
    ]
