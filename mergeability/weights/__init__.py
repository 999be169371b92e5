"""Read and write the weights of models; tensors are read lazily and safely, and have canonical names."""

import lazy_loader

# Names are imported on first access (lazy_loader), as listed in `__init__.pyi`, which type checkers also read.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
