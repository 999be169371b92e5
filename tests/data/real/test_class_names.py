"""Class names: cleaning, and telling a dataset's order from another."""

import pytest

from mergeability.data.real.class_names import ClassNames, cleaned
from mergeability.errors import UserError


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ("a/abbey", "abbey"),
        ("/a/apartment_building/outdoor", "apartment building outdoor"),
        ("american_pit_bull_terrier", "american pit bull terrier"),
        ("T - shirt / top", "T - shirt top"),
        ("  stop ", "stop"),
        ("polka-dotted", "polka-dotted"),
        ("10", "10"),
    ],
)
def test_cleaning(theirs, words):
    assert cleaned(theirs) == words


@pytest.fixture
def fruit() -> ClassNames:
    return ClassNames("fruit", ["red apple", "pear", "sour cherry"], {"pear": ["Birne", "poire"]})


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("red apple", 0),
        ("Red_Apple", 0),
        ("RedApple", 0),
        ("r/red-apple", 0),
        ("birne", 1),
        ("poire", 1),
        ("sour cherry", 2),
        ("2", 2),
        ("00001", 1),
        ("3", None),
        ("plum", None),
        ("-1", None),
    ],
)
def test_a_class_is_found_by_its_spellings_and_by_its_number(fruit, name, label):
    assert fruit.label(name) == label


@pytest.mark.parametrize(
    "order", [["red_apple", "Birne", "sour-cherry"], ["0", "1", "2"], ["Red Apple", "1", "SourCherry"]]
)
def test_the_same_order(fruit, order):
    fruit.check_order(order, "the dataset")


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            ["red apple", "sour cherry", "pear"],
            "class 1 to be 'pear', but the dataset has 'sour cherry' at this position",
        ),
        (["0", "2", "1"], "class 1 to be 'pear', but the dataset has '2' at this position"),
        (
            ["red apple", "pear", "plum"],
            "class 2 to be 'sour cherry', but the dataset has 'plum' at this position",
        ),
        (["red apple", "pear"], "expected 3 classes, but the dataset has 2"),
    ],
)
def test_another_order_names_the_first_difference(fruit, order, message):
    with pytest.raises(UserError, match=message):
        fruit.check_order(order, "the dataset")


def test_numbers_that_are_names_come_first():
    """A class called 1 that is the first one is not the second."""
    assert ClassNames("odd", ["1", "3", "5"]).label("1") == 0


@pytest.mark.parametrize(
    ("names", "spellings", "message"),
    [
        (["a b", "c"], {"d": "e"}, r"dataset.spellings contains \['d'\], which are not among the classes"),
        (["a b", "A-B"], {}, "'a b' and 'A-B' have the same spelling"),
        (["a", "b"], {"a": "b"}, "'a' and 'b' have the same spelling 'b'"),
    ],
)
def test_spellings_that_tell_no_classes_apart(names, spellings, message):
    with pytest.raises(UserError, match=message):
        ClassNames("wrong", names, spellings)
