import math

import numpy as np
import pytest

from mergeability.checks import is_count, is_number


@pytest.mark.parametrize("value", [0, 1, -3, 0.5, 1e300])
def test_finite_numbers_are_numbers(value):
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "1", None, [1], 1j])
def test_nothing_else_is_a_number(value):
    assert not is_number(value)


@pytest.mark.parametrize(
    ("value", "least", "expected"),
    [
        (0, 0, True),
        (0, 1, False),
        (5, 1, True),
        (True, 0, False),
        (2.0, 0, False),
        ("2", 0, False),
        (None, 0, False),
    ],
)
def test_counts_are_whole_numbers_of_at_least_the_least(value, least, expected):
    assert is_count(value, least) is expected


def test_numbers_of_numpy_are_judged_by_their_kind():
    assert is_number(np.float64(0.5))
    assert not is_number(np.float64("nan"))
