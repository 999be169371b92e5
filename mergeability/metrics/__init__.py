"""Step 7, pairwise metrics: functions from the profiles of T models to a T×T matrix.

`gram` holds what follows from one Gram matrix, `rank` what follows from the spectra of its 2×2 blocks, `subspace`
the overlaps of singular subspaces, `sign` what follows from signs, `same_samples` gradients on the same samples,
`measure` the table of all of them, `catalogue` the list of them, `traits` what each declares about itself.
"""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
