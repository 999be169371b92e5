"""Compare and merge models, and predict whether they merge well; models are checkpoint files or objects in memory.

The command line `mergeability compare|predict|merge` calls these functions. The default arguments are the values in the
YAML files of `conf`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
