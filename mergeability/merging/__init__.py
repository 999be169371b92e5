"""Define the methods that combine task vectors into one merged task vector.

A method is a frozen dataclass: `Ties(density=0.2)(task_vectors)` gives M, `apply(base, M, alpha)` the weights
θ_0 + α·M. Its field `alpha` is the method's own default scale.
"""

import lazy_loader

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
