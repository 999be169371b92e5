"""Draw the figure of conflicts by layer."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import BLUE, DIVERGING, GREY, figure_layout, rounded

_MOST_PAIRS, _NAMED = 400, 60


def layer_map(cosines: pd.DataFrame) -> go.Figure:
    """Draw the cosine of each pair's task vectors in every layer; for many pairs, draw the range over pairs.

    Args:
        cosines: one row per layer, from top to bottom, and one column per pair; NaN where undefined.

    Returns:
        The figure: a heat map on a scale centred on 0, or for more than 400 pairs the lowest, median and highest cosine
        of each layer.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import layer_map
        >>> figure = layer_map(pd.DataFrame({"a + b": [0.5, -0.1], "a + c": [0.2, 0.3]}, index=["first", "last"]))
        >>> figure.data[0].y, figure.data[0].z, figure.data[0].zmin
        (('first', 'last'), ([0.5, 0.2], [-0.1, 0.3]), -0.5)
    """
    height = min(max(14 * len(cosines) + 130, 260), 1100)
    names = [str(layer) for layer in cosines.index]
    ticks = {"type": "category", "autorange": "reversed", "tickfont": {"size": 10}}
    if len(cosines) * 14 + 130 <= height:
        ticks["dtick"] = 1
    if cosines.shape[1] > _MOST_PAIRS:
        return _ranges(cosines, names, ticks, height)
    values = cosines.to_numpy(dtype=float)
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return go.Figure(
        go.Heatmap(
            z=rounded(values, 3),
            x=list(cosines.columns),
            y=names,
            zmin=-largest,
            zmax=largest,
            colorscale=DIVERGING,
            hoverongaps=False,
            hovertemplate="%{x}<br>%{y}: cosine %{z:.3f}<extra></extra>",
            colorbar={
                "thickness": 9,
                "outlinewidth": 0,
                "tickfont": {"size": 10},
                "title": {"text": "cosine", "side": "right"},
            },
        ),
        layout=figure_layout(
            plot_bgcolor="#eef1f4",
            height=height,
            xaxis={
                "type": "category",
                "showgrid": False,
                "showticklabels": cosines.shape[1] <= _NAMED,
                "ticks": "" if cosines.shape[1] > _NAMED else "outside",
                "tickangle": -60,
                "dtick": 1,
                "tickfont": {"size": 10},
                "title": {"text": f"pairs, from lowest to highest mean cosine ({cosines.shape[1]})"},
            },
            yaxis={**ticks, "showgrid": False},
        ),
    )


def _ranges(cosines: pd.DataFrame, names: list[str], ticks: dict, height: int) -> go.Figure:
    figure = go.Figure(layout=figure_layout(height=height, xaxis={"title": {"text": "cosine"}}, yaxis=ticks))
    for share, name, colour in ((0.0, "lowest", GREY), (0.5, "median", BLUE), (1.0, "highest", GREY)):
        figure.add_scatter(
            x=rounded(cosines.quantile(share, axis=1).to_numpy()),
            y=names,
            mode="markers",
            name=f"{name} of {cosines.shape[1]:,} pairs",
            marker={"color": colour, "size": 6},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    return figure
