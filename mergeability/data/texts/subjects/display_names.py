"""Classify names of languages, countries and currencies by the language in which they are written.

The ten languages use Latin script.

Source: Babel (https://babel.pocoo.org), BSD-3-Clause licence, with the locale data of Unicode CLDR (Unicode licence);
an optional package, only imported.
"""

from collections.abc import Mapping, Sequence

from mergeability.data.texts.subject import Collected, optional_package, short

_LOCALES = {
    "Czech": "cs",
    "Danish": "da",
    "Estonian": "et",
    "Finnish": "fi",
    "French": "fr",
    "Hungarian": "hu",
    "Lithuanian": "lt",
    "Polish": "pl",
    "Romanian": "ro",
    "Vietnamese": "vi",
}


def _collect() -> Mapping[str, Sequence[str]]:
    return {name: short(_names(locale), 2) for name, locale in _LOCALES.items()}


def _names(locale: str) -> list[str]:
    found = optional_package("babel", "babel").Locale(locale)
    return [
        name for names in (found.languages, found.territories, found.currencies) for name in names.values()
    ]


SUBJECT = Collected(tuple(_LOCALES), _collect)
