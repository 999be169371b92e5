"""Step 6, how two models relate: pairwise metrics, each a function from profiles to a T×T matrix.

`gram` holds what follows from one Gram matrix, `rank` what follows from its 2×2 blocks' spectra, `subspace`
the overlaps of singular subspaces, `sign` what follows from signs, `shared` gradients on the same samples,
`measure` the table of all of them and the pair table.
"""

from importlib import import_module
from typing import Any

__all__ = ["gram", "measure", "rank", "shared", "sign", "subspace"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"mergeability.metrics.{name}")
    raise AttributeError(f"module 'mergeability.metrics' has no attribute {name!r}")
