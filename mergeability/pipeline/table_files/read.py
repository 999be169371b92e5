"""Read tables of pairs from delimited text, Excel workbooks or Parquet."""

import bz2
import gzip
import io
import lzma
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError, shown
from mergeability.pipeline.table_files.cells import plain_numbers, shares_of_one
from mergeability.pipeline.table_files.text import NAMES, Rows, text_rows
from mergeability.pipeline.table_files.workbook import workbook_rows
from mergeability.prediction.csv_files import original
from mergeability.prediction.pair_table import summarise_names

_ZIP = b"PK\x03\x04"
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
_COMPRESSED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}


@dataclass(frozen=True)
class PairFile:
    """Hold a table of pairs, and remarks about how it was read.

    Attributes:
        frame: one row per pair, names without blanks around them, in Unicode's composed form.
        notes: sentences about what was left out or converted.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def read_pairs(path: str | Path) -> PairFile:
    """Read a table of pairs from a file.

    Text may be separated by commas, semicolons, tabs or bars, with decimal points or commas, in UTF-8, UTF-16 or
    Windows-1252, compressed or not. Accuracies in per cent become shares.

    Raises:
        UserError: there is no such file, or it is not such a table.
    """
    path = Path(path).expanduser()
    try:
        if not path.is_file():
            raise UserError(f"No table at {path}. Give suite.table=<a CSV, Parquet or xlsx file>.")
        content = _decompressed(path.read_bytes())
    except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as a table: {error}.") from error
    if content.startswith(b"PAR1"):
        frame, notes = _from_parquet(content, path)
    elif path.suffix.lower() in (".parquet", ".pq"):
        raise UserError(f"{path} is not a complete Parquet file. Write it again, or give a CSV file.")
    elif content.startswith(_OLD_EXCEL):
        raise UserError(f"{path} is a workbook in the old xls format. Save it as xlsx or CSV.")
    else:
        read = workbook_rows if content.startswith(_ZIP) else text_rows
        frame, notes = _from_rows(read(content, path.name), path.name)
    _check_names(frame, path.name)
    notes += _nearly_equal(frame)
    frame, converted = shares_of_one(frame)
    return PairFile(frame, (*notes, *converted))


def _decompressed(content: bytes) -> bytes:
    for magic, decompress in _COMPRESSED.items():
        if content.startswith(magic):
            return decompress(content)
    if content.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "[Content_Types].xml" in archive.namelist():
                return content
            if len(archive.namelist()) != 1:
                raise UserError(
                    f"Expected a table, got an archive of {len(archive.namelist())} files: "
                    f"{summarise_names(archive.namelist())}. Give one CSV, Parquet or xlsx file."
                )
            return archive.read(archive.namelist()[0])
    return content


def _from_parquet(content: bytes, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read Parquet, in which the pair may be the index; text columns are read as a CSV file's are."""
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: install the extra 'data', or give a CSV file.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    levels = [str(name).strip() for name in frame.index.names]
    notes = []
    if set(levels) & set(NAMES):
        # An index level that is also a column would appear twice.
        frame = frame.drop(
            columns=[name for name in frame.columns if name in frame.index.names]
        ).reset_index()
    elif not isinstance(frame.index, pd.RangeIndex):
        notes.append(f"The index of {path.name}{_called(frame.index.names)} is ignored.")
        frame = frame.reset_index(drop=True)
    header = _header([str(name) for name in frame.columns], path.name)
    columns = {name: frame.iloc[:, place] for place, name in enumerate(header)}
    text = {name: column for name, column in columns.items() if not _is_numeric(column) or name in NAMES}
    read, more = _from_rows(
        Rows(
            list(text),
            [[_cell_text(cell) for cell in row] for row in zip(*text.values(), strict=True)],
        ),
        path.name,
    ) if text and len(frame) else (pd.DataFrame(columns=list(text)), [])  # fmt: skip
    return pd.DataFrame(
        {name: read[name] if name in text else columns[name] for name in header}
    ), notes + more


def _called(names: Sequence[Any]) -> str:
    named = [str(name) for name in names if name is not None]
    return f" ({summarise_names(named)})" if named else ""


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _cell_text(cell: Any) -> str:
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    return cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)


def _from_rows(read: Rows, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Arrange rows of text as columns, numbers as numbers."""
    rows, notes = _of_one_length(read, name)
    header = [cell.strip() for cell in read.header]
    nameless = [place for place, cell in enumerate(header) if not cell]
    filled = [place for place in nameless if any(row[place].strip() for row in rows)]
    if filled:
        noun = "column without a name" if len(filled) == 1 else "columns without a name"
        notes.append(f"Skipped {len(filled)} {noun} of {name}: {', '.join(str(one + 1) for one in filled)}.")
    places = [place for place, cell in enumerate(header) if cell]
    named = _header([header[place] for place in places], name)
    columns = {
        one: [original(unicodedata.normalize("NFC", row[place].strip())) for row in rows]
        for one, place in zip(named, places, strict=True)
    }
    notes += plain_numbers({one: cells for one, cells in columns.items() if one not in NAMES})
    # pandas parses the numbers from text, so that they equal those of `read_csv` to the last digit.
    text = pd.DataFrame(columns, columns=named, dtype=object).to_csv(index=False)
    if not named:
        return pd.DataFrame(), [*read.notes, *notes]
    frame = pd.read_csv(
        io.StringIO(text),
        dtype=dict.fromkeys((one for one in NAMES if one in named), str),
        keep_default_na=False,
        na_values={one: [""] for one in named if one not in NAMES},
        skip_blank_lines=False,
        low_memory=False,
    )
    return frame, [*read.notes, *notes]


def _of_one_length(read: Rows, name: str) -> tuple[list[list[str]], list[str]]:
    """Give every row as many cells as the header.

    Raises:
        UserError: a row has cells that belong to no column, or the last one is cut.
    """
    width, rows, notes = len(read.header), read.rows, []
    if rows and all(len(row) == width + 1 for row in rows) and _counts([row[0] for row in rows]):
        # R's write.table writes no column name for row numbers.
        rows = [row[1:] for row in rows]
        notes.append(f"An unnamed column of row numbers in {name} is ignored.")
    long = [place for place, row in enumerate(rows, start=1) if any(cell.strip() for cell in row[width:])]
    if long:
        row = rows[long[0] - 1]
        raise UserError(
            f"Row {long[0]} of {name} has {len(row)} cells, but the header has {width} columns. Remove the"
            " extra delimiters, quote cells that contain a delimiter, or name all columns in the header."
        )
    ends = sum(len(row) > width for row in rows)
    if ends:
        notes.append(f"A delimiter at the end of {ends} rows of {name} is ignored.")
    if rows and read.open_end and len(rows[-1]) < width:
        raise UserError(
            f"The last row of {name} has {len(rows[-1])} of {width} cells and no line break, so the file"
            " seems to be truncated. Save it again, or remove this row."
        )
    short = [str(place) for place, row in enumerate(rows, start=1) if len(row) < width]
    if short:
        notes.append(
            f"{len(short)} rows of {name} (row {summarise_names(short)}) have fewer cells than the header. The"
            " missing cells are treated as empty."
        )
    return [[*row[:width], *[""] * (width - len(row))] for row in rows], notes


def _counts(cells: Sequence[str]) -> bool:
    """Return whether cells count the rows, from 0 or from 1."""
    return any(
        [cell.strip() for cell in cells] == [str(i + first) for i in range(len(cells))] for first in (0, 1)
    )


def _header(names: Sequence[str], file: str) -> list[str]:
    """Strip the columns' names, and check that each is there once."""
    found = [original(unicodedata.normalize("NFC", " ".join(name.split()))) for name in names]
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise UserError(
            f"{file} contains {'a column' if len(twice) == 1 else 'columns'} more than once:"
            f" {summarise_names(twice)}. Keep one of each."
        )
    return found


def _check_names(frame: pd.DataFrame, file: str) -> None:
    absent = [name for name in NAMES if name not in frame.columns]
    if absent:
        simple = {_simple(name): name for name in reversed(list(map(str, frame.columns)))}
        near = [simple[_simple(name)] for name in absent if _simple(name) in simple]
        hint = f" Rename {summarise_names([shown(name) for name in near])}." if near else ""
        raise UserError(
            f"{file} has no column {', '.join(absent)}. It has: {summarise_names(list(frame.columns))}.{hint}"
        )
    if frame.empty:
        raise UserError(f"{file} contains a header but no rows. Expected one row per pair.")
    for name in NAMES:
        frame[name] = frame[name].where(frame[name] != "", None)


def _simple(name: str) -> str:
    return "".join(one for one in name.casefold() if one.isalnum())


def _nearly_equal(frame: pd.DataFrame) -> list[str]:
    """Name tasks that differ by case, blanks or accents alone."""
    alike: dict[str, list[str]] = {}
    for task in dict.fromkeys(frame[list(NAMES)].to_numpy(dtype=object).ravel().tolist()):
        if not pd.isna(task):
            bare = unicodedata.normalize("NFKD", "".join(str(task).split())).casefold()
            alike.setdefault("".join(one for one in bare if not unicodedata.combining(one)), []).append(task)
    return [
        f"Tasks {summarise_names([shown(name) for name in names])} differ only by case, blanks or accents, and "
        f"count as {len(names)} tasks."
        for names in alike.values()
        if len(names) > 1
    ]
