"""Guards for numbers that come from a user: YAML reads `true` as a number and `.nan` as a float."""

import math
from typing import Any, TypeGuard


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
