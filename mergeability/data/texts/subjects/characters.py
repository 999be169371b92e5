"""Classify Unicode characters into general categories by the name of each character.

Words that reveal the category are removed from the names.

Source: `unicodedata` of the installed Python (PSF licence; Unicode licence for the data). The names differ between
versions of Python.
"""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mergeability.data.texts.subject import Collected, short

_CATEGORIES = {
    "lowercase letter": "Ll",
    "other letter": "Lo",
    "modifier letter": "Lm",
    "combining mark": "Mn",
    "number": "No",
    "punctuation": "Po",
    "mathematical symbol": "Sm",
    "other symbol": "So",
}
# Words that name a category, and hexadecimal numbers, which thousands of ideographs have instead of names.
_REVEALING = re.compile(
    r"\b(SMALL|CAPITAL|LETTER|MODIFIER|DIGIT|NUMBER|NUMERIC|NUMERAL|SYMBOL|COMBINING|VOWEL|SIGN|MARK|OPERATOR"
    r"|MATHEMATICAL|SYLLABLE|SYLLABICS|IDEOGRAPH|PUNCTUATION|FRACTION)\b|-?\b[0-9A-F]*[0-9][0-9A-F]*\b"
)


def _collect() -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for character in map(chr, range(sys.maxunicode + 1)):
        category = unicodedata.category(character)
        if category in _CATEGORIES.values():
            found[category].append(_REVEALING.sub(" ", unicodedata.name(character, "")).lower())
    return {name: short(found[category], 2) for name, category in _CATEGORIES.items()}


SUBJECT = Collected(tuple(_CATEGORIES), _collect)
