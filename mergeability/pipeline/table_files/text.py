"""Split delimited text into rows of cells; detect its encoding and delimiter."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mergeability.errors import UserError, shown

NAMES = ("task_a", "task_b")

_DELIMITERS = (",", ";", "\t", "|")
# The byte-order mark of UTF-32 begins with that of UTF-16, so longer marks are tested first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Rows:
    """Hold the header and the cells of a file, and remarks about skipped parts."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    # A last row without a line break may be truncated.
    open_end: bool = False


def text_rows(content: bytes, name: str) -> Rows:
    """Split delimited text into rows.

    The delimiter is the one that gives the columns `task_a` and `task_b`. Lines that begin with `#` are comments.

    Raises:
        UserError: the file is empty, is not text, or has a quotation mark that is not closed.
    """
    text, notes = _decoded(content, name)
    lines = _Lines(text)
    reader = csv.reader(
        lines, delimiter=_delimiter(lines, name), skipinitialspace=True, strict=True, quotechar='"'
    )
    rows: list[list[str]] = []
    while True:
        lines.at_start = True
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(
                f"{name} cannot be read as a table: {error}, in the row that ends in line {lines.number}."
                " Close every quotation mark, and write a quotation mark inside a quoted cell twice."
            ) from error
        rows.append(row)
    if lines.comments:
        numbers = ", ".join(map(str, lines.comments[:6])) + (", …" if len(lines.comments) > 6 else "")
        notes.append(f"Skipped {_count(len(lines.comments), 'comment line')} of {name}: line {numbers}.")
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    if not filled:
        raise UserError(f"{name} is empty. Expected a header with task_a and task_b, and one row per pair.")
    return Rows(filled[0], filled[1:], notes, open_end=not text.endswith(("\n", "\r")))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _decoded(content: bytes, name: str) -> tuple[str, list[str]]:
    """Decode a file by its mark; without one as UTF-8, as UTF-16 where every other byte is zero, or as Windows-1252."""
    encoding = next((found for mark, found in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        zeros = [content[start:4096:2].count(0) for start in (0, 1)]
        if max(zeros) and min(zeros) == 0:
            encoding = "utf-16-le" if zeros[1] else "utf-16-be"
        elif max(zeros):
            raise UserError(f"{name} is not text. Give a CSV, Parquet or xlsx file.")
    for attempt in (encoding,) if encoding else ("utf-8", "cp1252"):
        try:
            text = content.decode(attempt)
        except UnicodeDecodeError:
            continue
        return text, [f"{name} is not UTF-8 and was read as Windows-1252."] if attempt == "cp1252" else []
    raise UserError(
        f"{name} is not text in UTF-8, UTF-16, UTF-32 or Windows-1252. Save it as UTF-8, or as Parquet or xlsx."
    )


class _Lines:
    """The lines of a text without comments; a line inside a quoted cell is no comment."""

    def __init__(self, text: str) -> None:
        self._lines = list(io.StringIO(text, newline=""))
        self.number = 0
        self.comments: list[int] = []
        self.at_start = True
        self._header_seen = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self.number < len(self._lines):
            line = self._lines[self.number]
            self.number += 1
            if self.at_start and line.lstrip().startswith("#"):
                if self._header_seen or not _is_header(line):
                    self.comments.append(self.number)
                    continue
                # R and NumPy may write the header as a comment.
                line = line.lstrip().lstrip("#").lstrip(" ")
            self._header_seen = self._header_seen or bool(line.strip())
            self.at_start = False
            return line
        raise StopIteration

    def declared(self) -> str | None:
        """Remove the line `sep=;`, by which Excel declares the delimiter."""
        found = re.fullmatch(r"sep=(.)\s*", self._lines[0]) if self._lines else None
        self.number += found is not None
        return found[1] if found else None

    def header(self) -> str:
        """Return the first line that is not a comment, without consuming it."""
        for line in self._lines[self.number :]:
            if line.strip() and (not line.lstrip().startswith("#") or _is_header(line)):
                return line.lstrip("# ")
        return ""


def _is_header(line: str) -> bool:
    return set(NAMES) <= set(re.split(r"[^\w.]+", line))


def _delimiter(lines: _Lines, name: str) -> str:
    declared, header = lines.declared(), lines.header()
    if declared is not None:
        return declared
    fields: dict[str, Sequence[str]] = {}
    for delimiter in _DELIMITERS:
        try:
            row = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error as error:
            raise UserError(
                f"The header of {name} cannot be read: {error}. The header is {shown(header)}."
            ) from error
        fields[delimiter] = [cell.strip() for cell in row]
    fitting = [delimiter for delimiter, row in fields.items() if set(NAMES) <= set(row)]
    return fitting[0] if fitting else max(fields, key=lambda delimiter: len(fields[delimiter]))
