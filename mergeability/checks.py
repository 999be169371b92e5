"""Guards for values that come from a user: YAML reads `true` as a number and `.nan` as a float.

The names below are annotations: what a class or function of `conf` declares for an argument is what the commands check
before anything is made of a configuration.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeGuard

from mergeability.errors import UserError, shown


@dataclass(frozen=True)
class Bounds:
    """The lowest and the highest value of a number; `above` leaves the lowest one out."""

    low: float | int = -math.inf
    high: float | int = math.inf
    above: bool = False

    def admits(self, value: float | int) -> bool:
        """Return whether a number lies within.

        >>> Bounds(0, 1).admits(0), Bounds(0, 1, above=True).admits(0), Bounds(0, 1).admits(float("nan"))
        (True, False, False)
        """
        return (self.low < value if self.above else self.low <= value) and value <= self.high


@dataclass(frozen=True)
class OnePart:
    """Text that names one file or folder: it leads nowhere else."""


# No machine holds more of anything, and libraries in C take no larger numbers.
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


def is_number(value: Any) -> TypeGuard[float | int]:
    """Return whether a value is a finite number; True and False are none.

    >>> is_number(0.5), is_number(True), is_number(float("nan")), is_number("1")
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int = 0) -> TypeGuard[int]:
    """Return whether a value is a whole number of at least `least`; True and False are none.

    >>> is_count(3), is_count(0, least=1), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_path_part(text: str) -> bool:
    r"""Return whether text can name one file or folder below another, on any system and in any terminal.

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
    """Check that a name can be used as that of a file or folder.

    Raises:
        UserError: it would lead elsewhere, or nowhere.
    """
    if not is_path_part(text):
        raise UserError(
            f"Expected the {what} to be usable as that of a file, without / and \\ and no longer than 200 bytes, got "
            f"{shown(text)}: rename it."
        )
