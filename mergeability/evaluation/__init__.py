"""Step 9, how good a merge is: accuracies of models and of merges, and the accuracy of simple opponents."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
