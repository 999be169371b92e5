"""Classify docstrings by their module in the standard library; those that contain the module's name are left out.

Source: the installed Python (PSF licence), whose source files are parsed but not imported. The texts differ between
versions of Python.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from mergeability.data.texts.subject import Collected, short

_MODULES = ("asyncio", "email", "http", "importlib", "logging", "mailbox", "multiprocessing", "xml")
# In characters: names of arguments take many more tokens than words.
_LONGEST = 110


def _collect() -> Mapping[str, Sequence[str]]:
    return {module: short(_summaries(module), 4, 14) for module in _MODULES}


def _summaries(module: str) -> Iterator[str]:
    """Yield the first paragraph of each docstring of classes and functions."""
    for file in _files(module):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary = (ast.get_docstring(node) or "").partition("\n\n")[0]
                if module not in summary.lower() and len(summary) <= _LONGEST:
                    yield summary


def _files(module: str) -> list[Path]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]


SUBJECT = Collected(_MODULES, _collect)
