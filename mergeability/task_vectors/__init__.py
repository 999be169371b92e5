"""Step 5, what fine-tuning changed: task vectors τ_t = θ_t − θ_0, read from disk when they are used."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
