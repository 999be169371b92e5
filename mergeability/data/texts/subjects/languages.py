"""Classify sentences from dialogues by their language, one of eight that use Latin script.

Source: chatterbot-corpus (https://github.com/gunthercox/chatterbot-corpus), BSD licence; an optional package, only
read.
"""

from collections.abc import Mapping, Sequence

from mergeability.data.texts.dialogues import dialogue_sentences
from mergeability.data.texts.subject import Collected, short

_CLASSES = ("Dutch", "English", "German", "Indonesian", "Italian", "Portuguese", "Spanish", "Turkish")


def _collect() -> Mapping[str, Sequence[str]]:
    return {
        name: short((text for texts in dialogue_sentences(name.lower()).values() for text in texts), 2, 6)
        for name in _CLASSES
    }


SUBJECT = Collected(_CLASSES, _collect)
