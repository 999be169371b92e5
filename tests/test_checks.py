import math

import numpy as np
import pytest

from mergeability.checks import alike_remarks, clean_name, clean_names, is_count, is_number, lookalikes
from mergeability.errors import UserError


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


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        (" pets\t", "pets"),
        ("\u00a0pets\u2003", "pets"),
        ("\ufeffpets\u200b", "pets"),
        ("sea  lion", "sea  lion"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        (7, "7"),
        (1.5, "1.5"),
    ],
)
def test_names_are_cleaned(given, clean):
    assert clean_name(given) == clean


@pytest.mark.parametrize("name", [True, None, [], "", "  ", "\ufeff"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(UserError, match="Expected the name of a task"):
        clean_name(name, "the name of a task")


def test_one_name_in_two_forms_is_refused():
    for one, other in (("a", "a "), ("\u00e9", "e\u0301"), (1, "1")):
        with pytest.raises(
            UserError,
            match="twice, in spellings that differ only in white space or in the Unicode form of accents",
        ):
            clean_names([one, other], "tasks")


def test_names_that_differ_by_case_or_blanks_alone_are_told():
    assert lookalikes(["a", "b", "c d"]) == []
    assert lookalikes(["Stra\u00dfe", "STRASSE", "c d", "cd", "C D"]) == [
        ("Stra\u00dfe", "STRASSE"),
        ("c d", "cd"),
        ("c d", "C D"),
    ]
    (sentence,) = alike_remarks(["a", "A"], "models")
    assert (
        sentence
        == "The models 'a' and 'A' differ only in case or white space; they are treated as different."
    )
