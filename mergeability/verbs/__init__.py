"""Compare, predict and merge checkpoint files or models in memory.

The command line `mergeability compare|predict|merge` calls them; their defaults are those of the YAML files in `conf`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
