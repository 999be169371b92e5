"""Compute pairwise metrics: functions from the profiles of T models to a T×T matrix.

`gram` contains metrics of one Gram matrix, `rank` metrics of the spectra of its 2×2 blocks, `subspace`
overlaps of singular subspaces, `sign` metrics of signs, `same_samples` metrics of gradients on the same samples,
`measure` the table of all metrics, `catalogue` their list, and `traits` their declared properties.
"""

import lazy_loader

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
