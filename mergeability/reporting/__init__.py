"""Show what was found: the report, tables for the terminal, the summary across jobs, tracking."""

from importlib import import_module
from typing import Any

_HOME = {
    "Analysis": "tables",
    "CrossMethodSummary": "cross_method",
    "cross_method_summary": "cross_method",
    "summary_table": "tables",
    "write_report": "report",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
