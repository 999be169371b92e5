"""Define the colours, labels, rounding and layout of all figures."""

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
    """Convert a column name to readable text.

    Args:
        name: a metric, or a task effect with its prefix `task=`.

    Returns:
        The name without prefix and underscores.

    Examples:
        >>> from mergeability.reporting.figures import label
        >>> label("weight_cosine"), label("task=sun_397")
        ('weight cosine', 'sun_397')
    """
    return name.removeprefix(TASK_PREFIX) if name.startswith(TASK_PREFIX) else name.replace("_", " ")


def in_template(name: object) -> str:
    """Escape a name for a hover template, where {, < and & are special.

    Examples:
        >>> in_template("a<b %{x}")
        'a&lt;b %&#123;x&#125;'
    """
    text = str(name).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("{", "&#123;").replace("}", "&#125;")


def shared_bounds(columns: pd.DataFrame) -> tuple[float, float]:
    """Return a common colour range for several columns.

    Args:
        columns: numbers, NaN where unknown.

    Returns:
        The lowest and the highest value.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import shared_bounds
        >>> shared_bounds(pd.DataFrame({"ties": [0.8, 0.9], "dare": [0.7, float("nan")]}))
        (0.7, 0.9)
    """
    return value_bounds(columns.to_numpy(dtype=float))


def value_bounds(values: np.ndarray) -> tuple[float, float]:
    """Return the range of the finite values: v ± 0.5 if all equal v, (0, 1) if there are none.

    Args:
        values: an array of any shape.

    Returns:
        The lowest and the highest value, always different.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import value_bounds
        >>> value_bounds(np.array([0.2, np.nan, 0.7])), value_bounds(np.array([np.nan]))
        ((0.2, 0.7), (0.0, 1.0))
    """
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def low(values: "np.ndarray | pd.Series") -> float:
    """Return the lower end of an axis: 1.05 times the lowest finite value, or 0 if no value is finite.

    Args:
        values: numbers.

    Returns:
        The start of the axis.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import low
        >>> round(low(np.array([-0.2, 0.5, np.nan])), 2)
        -0.21
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.min()) * 1.05 if known.size else 0.0


def rounded(values: np.ndarray, digits: int = 4) -> list:
    """Round numbers to reduce the size of the figure's JSON.

    Args:
        values: numbers.
        digits: decimals; if the largest magnitude is below 0.1, more decimals keep the same number of significant
            digits.

    Returns:
        Nested lists of numbers, None for NaN.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import rounded
        >>> rounded(np.array([0.123456, np.nan]), 3), rounded(np.array([0.00123456]), 3)
        ([0.123, None], [0.001235])
    """
    values = np.asarray(values, dtype=float)
    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    extra = 0 if largest >= 0.1 or largest == 0 else int(-np.floor(np.log10(largest)))
    rounded = np.round(values, digits + extra).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def cell_texts(matrix: Float[np.ndarray, "T T"]) -> list[list[str]]:
    """Format all cells of a matrix in the same notation, which depends on the largest absolute value.

    Args:
        matrix: the numbers.

    Returns:
        One text per cell: two decimals, fewer for large values, scientific notation if all values are tiny or some are
        huge; empty for NaN.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import cell_texts
        >>> cell_texts(np.array([[0.5, np.nan], [np.nan, -1.25]]))
        [['0.50', ''], ['', '-1.25']]
        >>> cell_texts(np.array([[120.4, 3.0], [3.0, 98.6]]))
        [['120', '3'], ['3', '99']]
    """
    largest = float(np.nanmax(np.abs(matrix), initial=0.0)) if not np.isnan(matrix).all() else 0.0
    ordinary = largest == 0 or 0.05 <= largest < 10_000
    form = f".{0 if largest >= 100 else 1 if largest >= 10 else 2}f" if ordinary else ".1e"
    return [["" if np.isnan(value) else f"{value + 0.0:{form}}" for value in row] for row in matrix]


def figure_layout(**parts: object) -> dict:
    """Return a Plotly layout without the default template, because the page defines one style for all figures.

    Args:
        parts: further properties of the layout.

    Returns:
        The properties, with an empty template.

    Examples:
        >>> from mergeability.reporting.figures import figure_layout
        >>> sorted(figure_layout(height=300))
        ['height', 'template']
    """
    return {"template": go.layout.Template(), **parts}
