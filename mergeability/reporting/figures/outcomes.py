"""Draw the figure of all merges, by pair and method."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import (
    SEQUENTIAL,
    cell_texts,
    figure_layout,
    in_template,
    rounded,
    value_bounds,
)

MOST_PAIRS = 400
"""In one row of the figure: of more pairs, every k-th is drawn."""

_NAMED, _WRITTEN = 60, 16


def outcome_map(outcomes: pd.DataFrame, name: str) -> go.Figure:
    """Draw a heat map of outcomes by pair and method; pairs are sorted from worst to best.

    Args:
        outcomes: one row per pair, indexed by its name, and one column per method; NaN where unknown. Pairs are ordered
            by their mean over methods; of more than `MOST_PAIRS`, evenly spaced ranks are drawn.
        name: of the outcome, for the text on hover.

    Returns:
        The figure, one row per method, the method with the best mean first.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import outcome_map
        >>> outcomes = pd.DataFrame({"ties": [0.9, 0.7], "tsv": [0.8, 0.6]}, index=["a + b", "a + c"])
        >>> figure = outcome_map(outcomes, "accuracy")
        >>> figure.data[0].x, figure.data[0].y, figure.data[0].z
        (('a + c', 'a + b'), ('ties', 'tsv'), ([0.7, 0.9], [0.6, 0.8]))
    """
    low, high = value_bounds(outcomes.to_numpy(dtype=float))
    outcomes = outcomes.loc[:, outcomes.mean().sort_values(ascending=False, kind="stable").index]
    # Position and not name: two rows of a table may have one name.
    order = outcomes.mean(axis=1).to_numpy().argsort(kind="stable")
    count = len(order)
    if count > MOST_PAIRS:
        order = order[np.linspace(0, count - 1, MOST_PAIRS).round().astype(int)]
    shown = outcomes.iloc[order]
    values = shown.to_numpy(dtype=float).T
    text = cell_texts(values) if len(shown) <= _WRITTEN else None
    trace = go.Heatmap(
        z=rounded(values),
        x=list(shown.index),
        y=list(shown.columns),
        zmin=low,
        zmax=high,
        colorscale=SEQUENTIAL,
        text=text,
        texttemplate="%{text}" if text else None,
        textfont={"size": 11},
        xgap=1 if len(shown) <= 2 * _NAMED else 0,
        ygap=2,
        hoverongaps=False,
        hovertemplate="%{x}<br>%{y}: " + in_template(name) + " %{z:.3f}<extra></extra>",
        colorbar={
            "thickness": 9,
            "outlinewidth": 0,
            "tickfont": {"size": 10},
            "title": {"text": name, "side": "right"},
        },
    )
    sample = f" (every {count / MOST_PAIRS:.0f}th of {count:,})" if count > MOST_PAIRS else f" ({count})"
    return go.Figure(
        trace,
        layout=figure_layout(
            plot_bgcolor="#eef1f4",
            height=(70 if count > _NAMED else 170) + 26 * max(len(shown.columns), 4),
            xaxis={
                "type": "category",
                "showgrid": False,
                "showticklabels": count <= _NAMED,
                "ticks": "" if count > _NAMED else "outside",
                "tickangle": -60,
                "dtick": 1,
                "tickfont": {"size": 10},
                "title": {"text": f"pairs, from worst to best mean{sample}", "standoff": 8},
            },
            yaxis={"type": "category", "showgrid": False, "autorange": "reversed", "dtick": 1},
        ),
    )
