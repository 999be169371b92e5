"""Draw the figures of models, merges and scales."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import (
    BLUE,
    PALETTE,
    SEQUENTIAL,
    figure_layout,
    in_template,
    rounded,
)

_ACCURACIES = (
    ("chance", "chance", "#d5dbe1"),
    ("pixel_accuracy", "logistic regression on pixels", "#e6a532"),
    ("tfidf_accuracy", "logistic regression on TF-IDF", "#e6a532"),
    ("base_accuracy", "base model, zero-shot", "#7fb3d9"),
    ("finetuned_accuracy", "fine-tuned", BLUE),
)


# Up to so many sets, each is drawn beside its box.
_FEW_SETS = 60


def accuracy_bars(models: pd.DataFrame) -> go.Figure:
    """Draw grouped bars for every task: the accuracy of chance, simple baselines, the base and the fine-tuned model.

    Args:
        models: indexed by task: `chance`, `pixel_accuracy`, `tfidf_accuracy`, `base_accuracy` and
            `finetuned_accuracy`, in [0, 1], or some of them.

    Returns:
        The figure, one trace per known accuracy.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import accuracy_bars
        >>> models = pd.DataFrame({"base_accuracy": [0.6], "finetuned_accuracy": [0.9]}, index=["cars"])
        >>> [trace.name for trace in accuracy_bars(models).data]
        ['base model, zero-shot', 'fine-tuned']
    """
    figure = go.Figure(layout=figure_layout(yaxis={"title": {"text": "test accuracy"}, "range": [0, 1.02]}))
    for column, label, colour in _ACCURACIES:
        if column in models.columns and models[column].notna().any():
            heights = rounded(models[column].to_numpy(dtype=float))
            figure.add_bar(x=[str(t) for t in models.index], y=heights, name=label, marker={"color": colour})
    figure.update_layout(
        barmode="group", bargap=0.25, height=380, xaxis={"tickangle": -40, "type": "category"}
    )
    return figure


def scale_curves(curves: pd.DataFrame) -> go.Figure:
    """Plot each method's mean normalised validation accuracy against α, and mark the best α.

    Args:
        curves: the result of `curve_table`.

    Returns:
        The figure, one line per method.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import scale_curves
        >>> curves = pd.DataFrame({"method": "ties", "alpha": [0.5, 1.0], "norm_accuracy": [0.8, 0.9]})
        >>> figure = scale_curves(curves)
        >>> figure.data[0].y, figure.data[0].marker.size, figure.layout.xaxis.title.text
        ((0.8, 0.9), (5, 10), 'α')
    """
    figure = go.Figure(
        layout=figure_layout(
            xaxis={"title": {"text": "α"}},
            yaxis={"title": {"text": "normalised validation accuracy"}},
            height=440,
        )
    )
    for position, (method, rows) in enumerate(curves.groupby("method", sort=False)):
        heights = rows["norm_accuracy"].to_numpy(dtype=float)
        best = heights == np.nanmax(heights, initial=-np.inf)
        figure.add_scatter(
            x=rows["alpha"].tolist(),
            y=rounded(heights),
            mode="lines+markers",
            name=str(method),
            line={"color": PALETTE[position % len(PALETTE)], "width": 2},
            marker={"size": [10 if at else 5 for at in best]},
            hovertemplate="α = %{x}: %{y:.3f}<extra>" + in_template(method) + "</extra>",
        )
    return figure


def chosen_scales(curves: pd.DataFrame) -> go.Figure:
    """Draw a heat map of how often each α of the grid was the best one, for each method.

    Args:
        curves: the result of `curve_table`.

    Returns:
        The figure.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import chosen_scales
        >>> curves = pd.DataFrame({"method": "ties", "alpha": [0.5, 1.0], "chosen": [0.25, 0.75]})
        >>> figure = chosen_scales(curves)
        >>> figure.data[0].x, figure.data[0].text
        (('0.5', '1'), (['25%', '75%'],))
    """
    shares = curves.pivot_table(index="method", columns="alpha", values="chosen", sort=False)
    shares = shares[sorted(shares.columns)]
    values = shares.to_numpy(dtype=float)
    return go.Figure(
        go.Heatmap(
            z=rounded(values),
            x=[f"{alpha:g}" for alpha in shares.columns],
            y=[str(method) for method in shares.index],
            zmin=0,
            zmax=float(np.nanmax(values, initial=0)) or 1.0,
            colorscale=SEQUENTIAL,
            text=[["" if share == 0 else f"{share:.0%}" for share in row] for row in values],
            texttemplate="%{text}",
            textfont={"size": 10},
            xgap=1,
            ygap=1,
            showscale=False,
            hovertemplate="%{y}: α = %{x} best for %{z:.0%} of merges<extra></extra>",
        ),
        layout=figure_layout(
            xaxis={"title": {"text": "best α"}, "type": "category", "showgrid": False},
            yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
            height=max(260, 120 + 30 * len(shares)),
        ),
    )


def set_outcomes(sets: pd.DataFrame, columns: Sequence[str]) -> go.Figure:
    """Draw box plots of the normalised accuracy of all sets, by method and number of models.

    Args:
        sets: one row per set: `tasks`, `arity` and outcomes.
        columns: outcomes to draw, `norm_acc_<method>`; missing ones are skipped.

    Returns:
        The figure, one trace per method.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import set_outcomes
        >>> sets = pd.DataFrame({"tasks": ["a+b+c", "a+b+d"], "arity": [3, 3], "norm_acc_ties": [0.8, 0.7]})
        >>> figure = set_outcomes(sets, ["norm_acc_ties", "norm_acc_dare"])
        >>> [trace.name for trace in figure.data], figure.data[0].y
        (['ties'], (0.8, 0.7))
    """
    figure = go.Figure(
        layout=figure_layout(
            xaxis={"title": {"text": "models in a set"}, "type": "category"},
            yaxis={"title": {"text": "normalised accuracy"}},
            boxmode="group",
            height=440,
        )
    )
    for position, column in enumerate(name for name in columns if name in sets.columns):
        figure.add_box(
            x=[str(arity) for arity in sets["arity"]],
            y=rounded(sets[column].to_numpy(dtype=float)),
            name=column.removeprefix("norm_acc_"),
            marker={"color": PALETTE[position % len(PALETTE)], "size": 4},
            boxpoints="all" if len(sets) <= _FEW_SETS else "outliers",
            text=sets["tasks"].tolist(),
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )
    return figure
