"""Read and write CSV files; write no cells that spreadsheets would evaluate as formulas."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

# Cells that Excel, LibreOffice and Google Sheets evaluate. An already escaped cell gets another quote.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def cell(value: Any) -> Any:
    """Prepend a single quote to text that a spreadsheet would evaluate as a formula.

    Examples:
        >>> cell("=1+1"), cell("svhn"), cell(-0.5)
        ("'=1+1", 'svhn', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def original(value: Any) -> Any:
    """Remove the single quote that `cell` added."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _FORMULA.match(value) else value


def csv_text(frame: pd.DataFrame, index: bool = False) -> str:
    """Convert a table to CSV, with a single quote before each text that looks like a formula.

    Args:
        frame: the table.
        index: whether to write the index too.

    Returns:
        The CSV text.
    """
    return _mapped(frame, cell, index).to_csv(index=index)


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read a table that `csv_text` wrote; options are passed to `pandas.read_csv`."""
    return _mapped(pd.read_csv(path, **options), original, index=False)


def _mapped(frame: pd.DataFrame, change: Any, index: bool) -> pd.DataFrame:
    columns = [
        column if pd.api.types.is_numeric_dtype(column) else column.map(change)
        for column in (frame.iloc[:, place] for place in range(frame.shape[1]))
    ]
    changed = pd.concat(columns, axis=1) if columns else frame.copy()
    changed.columns = pd.Index([change(name) for name in frame.columns])
    if index:
        changed.index = frame.index.map(change)
        changed.index.names = frame.index.names
    return changed
