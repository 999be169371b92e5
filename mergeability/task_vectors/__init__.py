"""Read task vectors τ_t = θ_t − θ_0 from disk on demand."""

import lazy_loader

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
