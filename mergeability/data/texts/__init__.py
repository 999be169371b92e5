"""Text corpora: seeded sources of labelled texts that need no network connection."""

import lazy_loader

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
