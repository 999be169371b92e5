"""Figures of models, merges and scales."""

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
    ("base_accuracy", "base model, zero-shot", "#7fb3d9"),
    ("finetuned_accuracy", "fine-tuned", BLUE),
)


# Up to so many sets, each is drawn beside its box.
_FEW_SETS = 60


def accuracy_bars(models: pd.DataFrame) -> go.Figure:
    """Show chance, pixels, base and fine-tuned accuracy of every task, side by side."""
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
    """Draw each method's mean normalised validation accuracy against α, its best α marked."""
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
    """Show for each method the share of merges for which each α of the grid was best."""
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
    """Show the normalised accuracy of all sets, one box per method and number of models."""
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
