"""Present results: the report, tables in the terminal, the summary of a sweep, dashboards and tracking."""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
