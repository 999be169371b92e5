"""What a rendered task can be about: one module per kind of subject, and `catalogue`, the list of them."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
