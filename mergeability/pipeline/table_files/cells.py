"""Convert text cells to numbers: missing values, decimal commas, per cent signs."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergeability.errors import UserError, shown

# Words for missing values in spreadsheets, databases, R, pandas and statistics programs, in lower case.
_MISSING = frozenset(
    [
        *(
            "",
            "na",
            "n/a",
            "#n/a",
            "#na",
            "#nv",
            "nan",
            "-nan",
            "<na>",
            "nat",
            "null",
            "none",
            "nil",
            "missing",
        ),
        *("-", "--", "\N{EN DASH}", "\N{EM DASH}", ".", "?", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    ]
)
# Words that pandas writes are not reported.
_USUAL = frozenset(["", "na", "nan", "null", "none"])
_ERROR = re.compile(r"#[A-ZÀ-Ý0-9/]+[!?]")

_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d[\d.,'’ \u00a0\u202f]*\d([eE][+-]?\d+)?")
# Ambiguous numbers: 1,234 may be 1234 or 1.234.
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")

# Kinds of accuracies, with the largest value that counts as a share and not as per cent. A merge may be better than
# the fine-tuned model, so normalised accuracies may exceed 1.
_SHARES = (
    (re.compile(r"(low_|high_)?acc_.+|(base|finetuned)_accuracy(_[ab])?"), 1.0),
    (re.compile(r"(low_|high_)?norm_acc_.+"), 10.0),
)
_SLACK = 1e-5


def plain_numbers(columns: dict[str, list[str]]) -> list[str]:
    """Convert the cells of numeric columns in place to a form that pandas reads; return messages about changes.

    Args:
        columns: name → cells without white space around them.

    Raises:
        UserError: numbers with thousands separators, or with decimal commas and decimal points in one table.
    """
    notes = _without_missing(columns)
    numeric = {name: cells for name, cells in columns.items() if _mostly_numbers(cells)}
    for name, cells in numeric.items():
        numeric[name][:] = [cell.replace("\N{MINUS SIGN}", "-") for cell in cells]
        for row, cell in enumerate(cells, start=1):
            bare = cell.removesuffix("%").rstrip()
            if _GROUPED.fullmatch(bare) and not (_POINT.fullmatch(bare) or _COMMA.fullmatch(bare)):
                raise UserError(
                    f"Column {shown(name)} contains {shown(cell)} in row {row}, a number with thousands"
                    " separators. Write it without separators, as 1234.5."
                )
    notes += _with_points(numeric)
    for name, cells in numeric.items():
        shares = [row for row, cell in enumerate(cells) if _POINT.fullmatch(cell.removesuffix("%").rstrip())]
        shares = [row for row in shares if cells[row].endswith("%")]
        for row in shares:
            cells[row] = repr(float(cells[row].removesuffix("%")) / 100)
        if shares:
            notes.append(
                f"Column {shown(name)} contains per cent signs in {len(shares)} cells; their values were"
                " divided by 100."
            )
    return notes


def shares_of_one(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Divide columns of accuracies by 100 if all their values are percentages.

    Returns:
        The table, and a sentence that names these columns.

    Raises:
        UserError: a column has per cent among shares, or values that are neither.
    """
    converted: dict[str, np.ndarray] = {}
    for name in map(str, frame.columns):
        most = next((limit for pattern, limit in _SHARES if pattern.fullmatch(name)), None)
        if most is None or frame[name].dtype == bool:
            continue
        numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64)
        known = numbers[np.isfinite(numbers) & (numbers != 0)]
        negative = np.flatnonzero(numbers < -_SLACK)
        if len(negative):
            raise UserError(
                f"Expected accuracies of 0 or more in column {shown(name)}, got {numbers[negative[0]]:g} for"
                f" {_pair(frame, negative[0])} (row {negative[0] + 1}). Correct it, or leave the cell empty."
            )
        above = known > most + _SLACK
        if not above.any():
            continue
        if above.all() and known.max() > 10 and (most > 1 or known.max() <= 100 + _SLACK):
            converted[name] = numbers / 100
            continue
        row = int(np.flatnonzero(numbers > most + _SLACK)[0])
        among = (
            "although other rows are fractions: is it per cent?"
            if (known <= most).any()
            else "outside that range."
        )
        raise UserError(
            f"Expected accuracies from 0 to 1 in column {shown(name)}, got {numbers[row]:g} for "
            f"{_pair(frame, row)} (row {row + 1}), {among} Write 65 % as 0.65 in all rows."
        )
    if not converted:
        return frame, []
    names = ", ".join(list(converted)[:6]) + (", …" if len(converted) > 6 else "")
    noun = "Column is" if len(converted) == 1 else f"{len(converted)} columns are"
    return frame.assign(**converted), [f"{noun} in per cent and divided by 100, to shares: {names}."]


def _pair(frame: pd.DataFrame, row: int) -> str:
    return f"{shown(frame['task_a'].iloc[row])} and {shown(frame['task_b'].iloc[row])}"


def _without_missing(columns: dict[str, list[str]]) -> list[str]:
    """Empty the cells with a word for a missing value, and count unusual words."""
    words: Counter[str] = Counter()
    for cells in columns.values():
        for row, cell in enumerate(cells):
            if cell and (cell.casefold() in _MISSING or _ERROR.fullmatch(cell)):
                words[cell] += cell.casefold() not in _USUAL
                cells[row] = ""
    found = [f"{word} ({count})" for word, count in words.items() if count]
    return [f"Cells read as missing: {', '.join(found)}."] if found else []


def _mostly_numbers(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return sum(_is_number(cell) for cell in filled) * 2 > len(filled)


def _is_number(cell: str) -> bool:
    bare = cell.replace("\N{MINUS SIGN}", "-").removesuffix("%").rstrip()
    return any(form.fullmatch(bare) is not None for form in (_POINT, _COMMA, _GROUPED))


def _with_points(columns: dict[str, list[str]]) -> list[str]:
    """Write decimal commas as points, where a table has them throughout."""
    commas, points = [], []
    for name, cells in columns.items():
        for row, cell in enumerate(cells):
            bare = cell.removesuffix("%").rstrip()
            if "," in bare and _COMMA.fullmatch(bare):
                commas.append((name, row, bare))
            elif "." in bare and _POINT.fullmatch(bare):
                points.append((name, row, bare))
    if not commas:
        return []
    (name, row, cell), *_ = commas
    if points:
        (other, place, pointed), *_ = points
        raise UserError(
            f"Column {shown(name)} contains {shown(cell)} in row {row + 1}, but column {shown(other)}"
            f" contains {shown(pointed)} in row {place + 1}. Use one decimal sign in all cells, and no"
            " thousands separators."
        )
    if all(_AMBIGUOUS.fullmatch(cell) for _, _, cell in commas):
        raise UserError(
            f"Column {shown(name)} contains {shown(cell)} in row {row + 1}. The comma may be a decimal"
            " comma or a thousands separator. Write a decimal point, or no separator."
        )
    for name, row, cell in commas:
        columns[name][row] = columns[name][row].replace(cell, cell.replace(",", "."))
    return [f"{len(commas)} numbers with a decimal comma were read."]
