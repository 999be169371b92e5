"""Classify English sentences from dialogues by their topic.

Source: chatterbot-corpus (https://github.com/gunthercox/chatterbot-corpus), BSD licence; an optional package, only
read.
"""

from collections.abc import Mapping, Sequence

from mergeability.data.texts.dialogues import dialogue_sentences
from mergeability.data.texts.subject import Collected, short

_FILES = {
    "artificial intelligence": ("ai",),
    "programming": ("coding",),
    "everyday conversation": ("conversations",),
    "emotions": ("emotion",),
    "psychology": ("psychology",),
    "general knowledge": ("trivia",),
    "books and films": ("literature", "movies", "humor"),
}


def _collect() -> Mapping[str, Sequence[str]]:
    topics = dialogue_sentences("english")
    return {
        # Source code in back quotes would name its topic.
        name: short((text for file in files for text in topics[file] if "`" not in text), 3)
        for name, files in _FILES.items()
    }


SUBJECT = Collected(tuple(_FILES), _collect)
