"""Whether a sentence affirms or denies that something happened; two negations cancel each other.

Source: this project's templates.
"""

from mergeability.data.texts.draws import Draws
from mergeability.data.texts.events import EVENTS, PEOPLE
from mergeability.data.texts.subject import Written

# Frames around a sentence, by whether they negate it; most sentences have none.
_FRAMES = {
    False: ("", "", "", "", "it is true that ", "everybody agrees that ", "it is a fact that "),
    True: ("it is not true that ", "it is false that ", "it is wrong to say that ", "it is a myth that "),
}
# Phrases with the past tense or the base form of a verb, by whether they negate it.
_PHRASES = {
    False: ("{past}", "{past}", "did {base}", "managed to {base}", "really {past}", "did not fail to {base}"),
    True: ("did not {base}", "never {past}", "failed to {base}", "refused to {base}", "forgot to {base}"),
}
_ENDINGS = (
    "",
    "",
    " yesterday",
    " last week",
    " without any help",
    " although it was not easy",
    " before noon",
)


def _write(name: str, draws: Draws) -> str:
    frame = draws.chance(0.3)
    phrase = frame != (name == "denies")
    base, past = draws.choice(EVENTS)
    said = draws.choice(_PHRASES[phrase]).format(base=base, past=past)
    return f"{draws.choice(_FRAMES[frame])}{draws.choice(PEOPLE)} {said}{draws.choice(_ENDINGS)}"


SUBJECT = Written(("affirms", "denies"), _write)
