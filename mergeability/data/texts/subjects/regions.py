"""Classify the names of districts, provinces and municipalities by country.

Source: pycountry (https://github.com/pycountry/pycountry), LGPL-2.1 licence, with the data of ISO 3166-2; an optional
package, only imported.
"""

from collections.abc import Mapping, Sequence

from mergeability.data.texts.subject import Collected, optional_package, short

_COUNTRIES = {
    "Estonia": "EE",
    "France": "FR",
    "Italy": "IT",
    "Morocco": "MA",
    "the Philippines": "PH",
    "Slovenia": "SI",
    "Uganda": "UG",
    "the United Kingdom": "GB",
}


def _collect() -> Mapping[str, Sequence[str]]:
    subdivisions = optional_package("pycountry", "pycountry").subdivisions
    return {
        country: short(region.name for region in subdivisions.get(country_code=code))
        for country, code in _COUNTRIES.items()
    }


SUBJECT = Collected(tuple(_COUNTRIES), _collect)
