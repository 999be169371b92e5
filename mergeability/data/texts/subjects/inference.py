"""Whether a statement about a group implies a second statement, contradicts it, or leaves it open.

Every group has members, so that "all" implies "some".

Source: this project's templates.
"""

from mergeability.data.texts.draws import Draws
from mergeability.data.texts.events import EVENTS
from mergeability.data.texts.subject import Written

_GROUPS = (
    "students",
    "guests",
    "children",
    "workers",
    "neighbours",
    "tourists",
    "players",
    "nurses",
    "farmers",
)
_QUANTIFIERS = {
    "all": ("all of the {}", "each of the {}", "every one of the {}"),
    "some": ("some of the {}", "at least one of the {}"),
    "not all": ("not all of the {}", "not every one of the {}"),
    "none": ("none of the {}", "not one of the {}"),
}
# Pairs of premise and hypothesis about the same event; any pair about different events is open.
_PAIRS = {
    "implies": (("all", "some"), ("none", "not all"), ("all", "all"), ("none", "none")),
    "contradicts": (
        *(("all", "none"), ("all", "not all"), ("none", "all"), ("none", "some")),
        *(("some", "none"), ("not all", "all")),
    ),
    "leaves open": (("some", "all"), ("some", "not all"), ("not all", "none"), ("not all", "some")),
}


def _write(name: str, draws: Draws) -> str:
    premise, hypothesis = draws.choice(_PAIRS[name])
    group, (_, event) = draws.choice(_GROUPS), draws.choice(EVENTS)
    return " ".join(
        f"{draws.choice(_QUANTIFIERS[one]).format(group)} {event}." for one in (premise, hypothesis)
    )


SUBJECT = Written(tuple(_PAIRS), _write)
