"""What all figures share: colours, labels, rounding, the layout."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from mergeability.prediction.validation.folds import TASK_PREFIX

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e3e8ee"


BLUE, ORANGE, GREEN, GREY = "#2166ac", "#d6604d", "#3a9276", "#a9b4c0"


PALETTE = (
    "#2166ac", "#d6604d", "#3a9276", "#b07aa1", "#e6a532", "#56a0c8",
    "#8c564b", "#7a9a01", "#e377c2", "#4d4d4d", "#9467bd", "#17807e",
)  # fmt: skip


SEQUENTIAL = "YlGnBu"


DIVERGING = "RdBu"


CELL_TEXT_TASKS = 12


ROW_HEIGHT = 22


def label(name: str) -> str:
    """Write a column name for a reader."""
    return name.removeprefix(TASK_PREFIX) if name.startswith(TASK_PREFIX) else name.replace("_", " ")


def in_template(name: object) -> str:
    """Escape a name for a hover template, where {, < and & are special.

    >>> in_template("a<b %{x}")
    'a&lt;b %&#123;x&#125;'
    """
    text = str(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("{", "&#123;").replace("}", "&#125;")


def shared_bounds(columns: pd.DataFrame) -> tuple[float, float]:
    """Find one range for the colour scale of several columns."""
    return value_bounds(columns.to_numpy(dtype=float))


def value_bounds(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest finite value; 0 and 1 if there is no finite value."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def low(values: "np.ndarray | pd.Series") -> float:
    """Return the lowest finite value, with a margin, for the start of an axis."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.min()) * 1.05 if known.size else 0.0


def rounded(values: np.ndarray, digits: int = 4) -> list:
    """Shorten numbers, as they travel as text: significant digits for small ones, decimals for the rest."""
    values = np.asarray(values, dtype=float)
    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    extra = 0 if largest >= 0.1 or largest == 0 else int(-np.floor(np.log10(largest)))
    rounded = np.round(values, digits + extra).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def cell_texts(matrix: Float[np.ndarray, "T T"]) -> list[list[str]]:
    """Write all cells in one notation, chosen by the largest magnitude, so that they can be compared.

    Two decimals, fewer for large values; scientific where the whole matrix is tiny or huge. Undefined cells are
    empty.
    """
    largest = float(np.nanmax(np.abs(matrix), initial=0.0)) if not np.isnan(matrix).all() else 0.0
    ordinary = largest == 0 or 0.05 <= largest < 10_000
    form = f".{0 if largest >= 100 else 1 if largest >= 10 else 2}f" if ordinary else ".1e"
    return [["" if np.isnan(value) else f"{value + 0.0:{form}}" for value in row] for row in matrix]


def figure_layout(**parts: object) -> dict:
    """Leave the common look (fonts, margins, grid) to the page, which sets it once for all figures."""
    return {"template": go.layout.Template(), **parts}
