"""Step 4, weights on disk: lazy and safe reading under canonical names, and writing with a card."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
