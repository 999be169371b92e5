"""Step 4, weights on disk: files are read lazily and safely, under canonical names, and written with a card."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
