"""Heat maps of pairs of tasks, and of tables."""

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
    """Arrange a column of the pair table as a symmetric task by task matrix, NaN where unknown."""
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
    """Draw a symmetric matrix; values of both signs get a diverging scale centred on 0.

    `bounds` fixes the colour scale, so that matrices can be compared. Of more than `MOST_TASKS` rows, the first ones
    are drawn, and the title says so.
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
    """Draw a table of signed numbers on a scale centred on 0; the tables in `beside` are shown on hover.

    Beyond ±`limit` colours do not change.
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
