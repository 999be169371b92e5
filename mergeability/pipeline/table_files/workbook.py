"""Read the rows of an Excel workbook."""

import datetime
import io
import warnings
import zipfile
import zlib
from typing import Any

from mergeability.errors import UserError
from mergeability.pipeline.table_files.text import NAMES, Rows

# Exceptions of openpyxl and its libraries for damaged files; an XML error is a SyntaxError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, SyntaxError),
    *(KeyError, IndexError, ValueError, TypeError, AttributeError),
)
# Maximum number of rows above the header, such as titles.
_TITLE_ROWS = 20


def workbook_rows(content: bytes, name: str) -> Rows:
    """Read the sheet with the columns `task_a` and `task_b`, or the first sheet if no sheet has them.

    Raises:
        UserError: openpyxl is missing, the file is not a whole workbook, or a formula has no value.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise UserError(
            f"Reading {name} requires openpyxl. Install it with pip install 'mergeability[xlsx]', or save the"
            " table as CSV."
        ) from error
    try:
        with warnings.catch_warnings():
            # Suppress warnings about styles and extensions, which do not matter here.
            warnings.simplefilter("ignore")
            values, formulas = (
                {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
                for book in (
                    openpyxl.load_workbook(io.BytesIO(content), data_only=shown) for shown in (True, False)
                )
            )
    except (*_DAMAGE, InvalidFileException) as error:
        raise UserError(
            f"{name} is not a complete Excel workbook ({error}). Save the workbook again, or export it as CSV."
        ) from error
    sheets = {title: _without_empty(rows) for title, rows in values.items()}
    empty = UserError(f"{name} is empty. Expected a header with task_a and task_b, and one row per pair.")
    if not any(sheets.values()):
        raise empty
    title = next((title for title, rows in sheets.items() if _header(rows) is not None), next(iter(sheets)))
    _check_formulas(values[title], formulas[title], f"{name}, sheet {title}")
    first = _header(sheets[title]) or 0
    above, rows = sheets[title][:first], [[_text(cell) for cell in row] for row in sheets[title][first:]]
    comments = [row for row in rows if row[0].startswith("#")]
    notes = [f"Skipped sheet {other} of {name}." for other in sheets if other != title and sheets[other]]
    if above or comments:
        notes.append(f"Skipped {len(above) + len(comments)} rows of titles or comments in {name}.")
    kept = [row for row in rows if row not in comments]
    if not kept:
        raise empty
    return Rows(kept[0], kept[1:], notes)


def _without_empty(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row for row in rows if any(cell is not None and str(cell).strip() for cell in row)]


def _header(rows: list[tuple[Any, ...]]) -> int | None:
    """Return the place of the first row with both names."""
    for place, row in enumerate(rows[:_TITLE_ROWS]):
        if set(NAMES) <= {str(cell).strip() for cell in row}:
            return place
    return None


def _check_formulas(values: list[tuple[Any, ...]], formulas: list[tuple[Any, ...]], name: str) -> None:
    """Raise an error for formulas without a computed value, because their cells would look empty."""
    for number, (row, written) in enumerate(zip(values, formulas, strict=True), start=1):
        for value, formula in zip(row, written, strict=True):
            if value is None and formula is not None:
                raise UserError(
                    f"{name} contains a formula without a value in row {number}. Open the file in a"
                    " spreadsheet program and save it again, or save it as CSV."
                )


def _text(cell: Any) -> str:
    """Write a cell as a CSV file has it; whole numbers without a point, so that a task may be called 1."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        # Workbooks have no dates without a time.
        return f"{cell.date()} (a date)"
    if isinstance(cell, datetime.date | datetime.time | datetime.timedelta):
        return f"{cell} (a date)"
    return str(cell)
