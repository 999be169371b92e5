"""Step 3, fine-tuning one model per task: the Lightning module, its data, penalties and training runs."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
