"""Whether the brackets of an expression are balanced, and what is wrong if they are not.

Source: this project's templates.
"""

from mergeability.data.texts.draws import Draws
from mergeability.data.texts.subject import Written

_CLASSES = ("balanced", "unclosed", "unopened", "crossed")
_BRACKETS = ("()", "[]", "{}")
_CLOSING = {")", "]", "}"}
_NAMES = (
    "a",
    "b",
    "c",
    "x",
    "y",
    "n",
    "rows",
    "key",
    "item",
    "total",
    "index",
    "name",
    "size",
    "left",
    "right",
    "f",
)


def _write(name: str, draws: Draws) -> str:
    while True:
        tokens = _expression(draws.integer(2, 4), draws)
        damaged = _damaged(name, tokens, draws)
        if damaged:
            return " ".join(damaged)


def _expression(pairs: int, draws: Draws) -> list[str]:
    """Write names and nested brackets, such as `rows [ f ( x ) ]`."""
    if pairs == 0:
        return [draws.choice(_NAMES)]
    inside = draws.integer(0, pairs - 1) if draws.chance(0.5) else pairs - 1
    opening, closing = draws.choice(_BRACKETS)
    after = pairs - 1 - inside
    rest = _expression(after, draws) if after else []
    return [draws.choice(_NAMES), opening, *_expression(inside, draws), closing, *rest]


def _damaged(name: str, tokens: list[str], draws: Draws) -> list[str]:
    """Remove a bracket or exchange two closing ones of different kinds; return nothing where there are no such two."""
    if name == "balanced":
        return tokens
    closing = [place for place, token in enumerate(tokens) if token in _CLOSING]
    opening = [place for place, token in enumerate(tokens) if token in "([{"]
    if name == "crossed":
        pairs = [
            (one, other)
            for one in closing
            for other in closing
            if one < other and tokens[one] != tokens[other]
        ]
        if not pairs:
            return []
        one, other = draws.choice(pairs)
        exchanged = list(tokens)
        exchanged[one], exchanged[other] = tokens[other], tokens[one]
        return exchanged
    place = draws.choice(closing if name == "unclosed" else opening)
    return tokens[:place] + tokens[place + 1 :]


SUBJECT = Written(_CLASSES, _write)
