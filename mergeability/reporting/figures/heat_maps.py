"""Draw heat maps of pairs of tasks and of tables."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from mergeability.reporting.figures.style import (
    CELL_TEXT_TASKS,
    DIVERGING,
    ROW_HEIGHT,
    SEQUENTIAL,
    cell_texts,
    figure_layout,
    in_template,
    rounded,
    value_bounds,
)

MOST_TASKS = 100
"""In a heat map of pairs: a thousand would take some 20 MB for each metric, and no cell would be seen."""


def pair_matrix(
    pairs: pd.DataFrame, column: str, tasks: Sequence[str], own: float = float("nan")
) -> Float[np.ndarray, "T T"]:
    """Convert a column of the pair table to a symmetric T×T matrix with NaN for unknown values.

    Args:
        pairs: one row per pair, with `task_a` and `task_b`.
        column: the values.
        tasks: the T tasks in the order of rows and columns.
        own: value on the diagonal.

    Returns:
        The matrix.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import pair_matrix
        >>> pairs = pd.DataFrame({"task_a": ["a", "a"], "task_b": ["b", "c"], "cosine": [0.1, 0.2]})
        >>> pair_matrix(pairs, "cosine", ["a", "b", "c"], own=1.0).tolist()
        [[1.0, 0.1, 0.2], [0.1, 1.0, nan], [0.2, nan, 1.0]]
    """
    index = {task: i for i, task in enumerate(tasks)}
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(matrix, own)
    rows = pairs["task_a"].map(index).to_numpy(dtype=int)
    columns = pairs["task_b"].map(index).to_numpy(dtype=int)
    matrix[rows, columns] = matrix[columns, rows] = pairs[column].to_numpy(dtype=float)
    return matrix


def matrix_heat_map(
    matrix: Float[np.ndarray, "T T"],
    labels: Sequence[str],
    bounds: tuple[float, float] | None = None,
    name: str = "value",
) -> go.Figure:
    """Draw a symmetric matrix as a heat map; if signs differ, the colour scale is centred on 0.

    Only the first `MOST_TASKS` rows are drawn if there are more; the title then says so.

    Args:
        matrix: the values, NaN where unknown.
        labels: names of rows and columns.
        bounds: range of the colour scale, so that matrices can be compared; the range of the values when None.
        name: of the values, for the text on hover.

    Returns:
        The figure.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import matrix_heat_map
        >>> figure = matrix_heat_map(np.array([[1.0, -0.2], [-0.2, 1.0]]), ["cars", "dtd"], name="cosine")
        >>> figure.data[0].zmin, figure.data[0].zmax, figure.data[0].x
        (-1.0, 1.0, ('cars', 'dtd'))
    """
    count = len(labels)
    low, high = bounds or value_bounds(matrix)
    matrix, labels = matrix[:MOST_TASKS, :MOST_TASKS], labels[:MOST_TASKS]
    signed = low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    roomy = len(labels) <= CELL_TEXT_TASKS
    text = cell_texts(matrix) if roomy else None
    trace = go.Heatmap(
        z=rounded(matrix, 5),
        x=list(labels),
        y=list(labels),
        zmin=low,
        zmax=high,
        colorscale=DIVERGING if signed else SEQUENTIAL,
        text=text,
        texttemplate="%{text}" if text else None,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="%{y} + %{x}<br>" + in_template(name) + " %{z:.4g}<extra></extra>",
        colorbar={
            "orientation": "h",
            "y": 1.01,
            "yanchor": "bottom",
            "thickness": 9,
            "len": 0.7,
            "outlinewidth": 0,
            "tickfont": {"size": 10},
        },
    )
    ticks = {
        "tickfont": {"size": 11 if roomy else 9},
        "showgrid": False,
        "dtick": 1,
        "type": "category",  # or tasks called "1" and "2" would be placed as numbers
    }
    layout = figure_layout(
        # What was not measured shows this ground instead of a colour of the scale.
        plot_bgcolor="#eef1f4",
        xaxis={**ticks, "tickangle": -60, "constrain": "domain"},
        yaxis={**ticks, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
    )
    if count > MOST_TASKS:
        title = f"The first {MOST_TASKS} of {count}; pairs.csv has all pairs"
        layout.update(title={"text": title, "font": {"size": 12}, "x": 0.5, "y": 0.01, "yanchor": "bottom"})
    return go.Figure(trace, layout=layout)


def labelled_heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    beside: Mapping[str, Float[np.ndarray, "rows columns"]],
    name: str,
    limit: float | None = None,
) -> go.Figure:
    """Draw a table of signed numbers as a heat map whose colour scale is centred on 0.

    Args:
        values: the numbers.
        rows: names of the rows.
        columns: names of the columns.
        beside: title → further numbers of the same shape, shown on hover.
        name: of the values.
        limit: absolute value beyond which colours do not change.

    Returns:
        The figure.

    Examples:
        >>> import numpy as np
        >>> from mergeability.reporting.figures import labelled_heat_map
        >>> values = np.array([[0.5, -2.0]])
        >>> figure = labelled_heat_map(values, ["cosine"], ["ties", "dare"], {}, "coefficient", limit=1)
        >>> figure.data[0].zmin, figure.data[0].zmax, figure.layout.xaxis.title.text
        (-1, 1, 'coefficient')
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    largest = largest if limit is None else min(largest, limit)
    custom = np.stack(list(beside.values()), axis=-1) if beside else None
    more = "".join(f"<br>{in_template(title)} %{{customdata[{i}]:.3g}}" for i, title in enumerate(beside))
    return go.Figure(
        go.Heatmap(
            z=rounded(values, 3),
            x=list(columns),
            y=list(rows),
            zmin=-largest,
            zmax=largest,
            colorscale=DIVERGING,
            text=cell_texts(values),
            texttemplate="%{text}",
            textfont={"size": 10},
            xgap=1,
            ygap=1,
            showscale=False,
            hoverongaps=False,
            customdata=None if custom is None else rounded(custom, 4),
            hovertemplate="%{y}, %{x}<br>" + in_template(name) + " %{z:.3f}" + more + "<extra></extra>",
        ),
        layout=figure_layout(
            plot_bgcolor="#eef1f4",
            xaxis={"type": "category", "showgrid": False, "side": "top", "title": {"text": name}},
            yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "tickfont": {"size": 11}},
            height=130 + ROW_HEIGHT * len(rows),
        ),
    )
