"""Step 7, one model from many: merge methods, each from task vectors to one merged task vector.

A method is a frozen dataclass: `Ties(density=0.2)(task_vectors)` gives M, `apply(base, M, alpha)` the weights
θ_0 + α·M. Its field `alpha` is the method's own default scale.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "Average": "average",
    "Breadcrumbs": "breadcrumbs",
    "ConsensusTA": "consensus_ta",
    "Dare": "dare",
    "Fisher": "fisher",
    "IsoC": "iso_c",
    "IsoCTS": "iso_cts",
    "RegMean": "regmean",
    "Slerp": "slerp",
    "TSVM": "tsv",
    "TaskArithmetic": "task_arithmetic",
    "Ties": "ties",
    "apply": "merger",
    "fixed_alpha": "merger",
}
_MODULES = (
    "average",
    "breadcrumbs",
    "consensus_ta",
    "dare",
    "fisher",
    "iso_c",
    "iso_cts",
    "merger",
    "polar",
    "published_alpha",
    "regmean",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsv",
)
__all__ = [
    "TSVM",
    "Average",
    "Breadcrumbs",
    "ConsensusTA",
    "Dare",
    "Fisher",
    "IsoC",
    "IsoCTS",
    "RegMean",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "apply",
    "fixed_alpha",
    "merger",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"mergeability.merging.{_LAZY[name]}"), name)
    if name in _MODULES:
        return import_module(f"mergeability.merging.{name}")
    raise AttributeError(f"module 'mergeability.merging' has no attribute {name!r}")
