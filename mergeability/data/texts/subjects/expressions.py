"""Classify Python expressions by the type of their value.

Many expressions choose between two values of different types.

Source: this project's templates.
"""

from mergeability.data.texts.draws import Draws
from mergeability.data.texts.subject import Written

# Names of variables by type. Numbers are positive, so that every expression has a value.
_NAMES = {
    "int": ("age", "count", "size", "7", "12"),
    "float": ("rate", "price", "weight", "0.5"),
    "str": ("word", "title", "line", "'red'"),
    "bool": ("ready", "empty"),
    "list": ("rows", "ages", "scores"),
    "tuple": ("pair", "point"),
    "set": ("seen", "known"),
    "dict": ("table", "prices"),
}
# Expressions by type; {int} stands for another expression of that type, and {lists} for a variable of it.
_FORMS = {
    "int": ("len({list})", "{int} + {int}", "{str}.count({str})", "sum({list})", "max({list})", "len({set})"),
    "float": ("{int} / {int}", "float({int})", "{float} * {int}", "sum({list}) / {int}", "{float} + {float}"),
    "str": ("str({int})", "{str}.upper()", "{str} + {str}", "{str}.strip()", "repr({list})", "str({float})"),
    "bool": (
        "{int} < {int}",
        "{str} in {set}",
        "not {bool}",
        "{str}.isdigit()",
        "any({list})",
        "{float} > {int}",
    ),
    "list": (
        "sorted({set})",
        "{str}.split()",
        "list({tuple})",
        "[{int}, {int}]",
        "{list} + {list}",
        "[{str}]",
    ),
    "tuple": (
        "({int}, {str})",
        "tuple({list})",
        "divmod({int}, {int})",
        "{str}.partition({str})",
        "({float},)",
    ),
    "set": ("{{{int}, {int}}}", "set({list})", "{set} | {set}", "set({str})", "{{{str}}}"),
    "dict": ("{{{str}: {int}}}", "dict(zip({list}, {list}))", "{dict} | {dict}", "dict(enumerate({list}))"),
}


# Ways to select {chosen} of two values.
_SELECTIONS = (
    *(
        "({chosen}, {other})[0]",
        "({other}, {chosen})[1]",
        "[{chosen}, {other}][0]",
        "[{other}, {chosen}][-1]",
    ),
    *("[{other}, {chosen}].pop()", "({chosen}, {other})[-2]"),
)


def _write(name: str, draws: Draws) -> str:
    chosen = _expression(name, draws, depth=1)
    if draws.chance(0.25):
        return chosen
    other = draws.choice([one for one in _NAMES if one != name])
    return draws.choice(_SELECTIONS).format(chosen=chosen, other=_expression(other, draws, depth=1))


def _expression(kind: str, draws: Draws, depth: int) -> str:
    if depth == 0 or (depth == 1 and draws.chance(0.4)):
        return draws.choice(_NAMES[kind])
    inner = _Inner(draws, depth - 1)
    return draws.choice(_FORMS[kind]).format_map(inner)


class _Inner(dict[str, str]):
    """Expressions for the placeholders of a form: a new one each time."""

    def __init__(self, draws: Draws, depth: int) -> None:
        super().__init__()
        self._draws, self._depth = draws, depth

    def __missing__(self, kind: str) -> str:
        return _expression(kind, self._draws, self._depth)


SUBJECT = Written(tuple(_NAMES), _write)
