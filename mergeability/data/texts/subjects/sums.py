"""Classify small calculations, which are written in words, by the range of the result.

Source: this project's templates.
"""

from mergeability.data.texts.draws import Draws
from mergeability.data.texts.subject import Written

_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *(
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ),
)
# Smallest and largest result of each class.
_RANGES = {
    "below zero": (-99, -1),
    "zero to nine": (0, 9),
    "ten to nineteen": (10, 19),
    "twenty to twenty nine": (20, 29),
    "thirty or more": (30, 99),
}
_OPENINGS = ("", "what is ", "calculate ", "the result of ", "we get ")


def _write(name: str, draws: Draws) -> str:
    low, high = _RANGES[name]
    while True:
        numbers = [draws.integer(1, 20) for _ in range(draws.integer(2, 3))]
        signs = [draws.choice((1, -1)) for _ in numbers[1:]]
        result = numbers[0] + sum(sign * number for sign, number in zip(signs, numbers[1:], strict=True))
        if low <= result <= high:
            break
    steps = [
        f"{'plus' if sign > 0 else 'minus'} {_WORDS[number]}" for sign, number in zip(signs, numbers[1:])
    ]
    return draws.choice(_OPENINGS) + " ".join([_WORDS[numbers[0]], *steps])


SUBJECT = Written(tuple(_RANGES), _write)
