"""Step 2, models: CLIP, zero-shot heads from its text tower, and the pretraining of the mini CLIP."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
