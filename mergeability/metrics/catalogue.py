"""List all metrics, which are the YAML files in `conf/metric`, with the traits that their functions declare."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from mergeability.errors import UserError, did_you_mean
from mergeability.members import fixed_set, members
from mergeability.metrics.traits import Traits, traits_of
from mergeability.profiles.profiles import Profiles


@runtime_checkable
class Metric(Protocol):
    """Define the interface of metrics: compute the values of all pairs from the profiles of T models.

    Examples:
        >>> from mergeability.metrics.catalogue import WEIGHT_SPACE, Metric
        >>> isinstance(WEIGHT_SPACE["stable_rank"], Metric)
        True
    """

    def __call__(self, profiles: Profiles, /) -> Float64[np.ndarray, "T T"]:
        """Compute a symmetric T×T matrix; NaN if the metric is undefined."""
        ...


@dataclass(frozen=True)
class Entry:
    """Hold one metric of the catalogue: its function, its traits and its origin.

    Attributes:
        name: name of its column and of its file in `conf/metric`.
        metric: the function with the options of that file.
        traits: what it declares: category, range, value for equal models, whether it needs data.
        published: whether it is one of the 28 of arXiv 2601.22285.

    Examples:
        >>> from mergeability.metrics.catalogue import CATALOGUE
        >>> entry = CATALOGUE["stable_rank"]
        >>> entry.name, entry.published, entry.traits.category
        ('stable_rank', True, 'effective rank')
    """

    name: str
    metric: Metric
    traits: Traits
    published: bool


def _entry(name: str, options: Mapping[str, Any], published: frozenset[str]) -> Entry:
    module, _, attribute = options["_target_"].rpartition(".")
    keywords = {key: value for key, value in options.items() if not key.startswith("_")}
    function = partial(getattr(import_module(module), attribute), **keywords)
    return Entry(name, function, traits_of(function), name in published)


def _catalogue() -> dict[str, Entry]:
    published = frozenset(fixed_set("metric", "paper"))
    return {name: _entry(name, options, published) for name, options in members("metric").items()}


# All metrics, in the order of table columns.
CATALOGUE = _catalogue()
# The published 28, and the 18 of them that need no data.
PAPER = {name: entry.metric for name, entry in CATALOGUE.items() if entry.published}
WEIGHT_SPACE = {name: metric for name, metric in PAPER.items() if not CATALOGUE[name].traits.needs_data}
# Categories of the published 28. Others are excluded, because these categories are part of the keys of stored studies.
CATEGORIES: dict[str, tuple[str, ...]] = {
    category: tuple(name for name in PAPER if CATALOGUE[name].traits.category == category)
    for category in dict.fromkeys(CATALOGUE[name].traits.category for name in PAPER)
}


def metrics_called(names: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics that have the given names.

    Args:
        names: names of the catalogue, such as "stable_rank".

    Returns:
        Name → metric, in the order given.

    Raises:
        UserError: a name is unknown.

    Examples:
        >>> from mergeability.metrics.catalogue import metrics_called
        >>> list(metrics_called(["stable_rank", "spectral_gap"]))
        ['stable_rank', 'spectral_gap']
    """
    # A single name would be iterated letter by letter.
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in CATALOGUE:
            raise UserError(
                f"There is no metric {name!r}.{did_you_mean(str(name), CATALOGUE)} Metrics: {', '.join(CATALOGUE)}."
            )
    return {name: CATALOGUE[name].metric for name in chosen}
