"""Figures that compare settings of fine-tuning."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import (
    GREY,
    INK,
    MUTED,
    PALETTE,
    figure_layout,
    in_template,
    rounded,
)

# Of a label, as shares of the width and height of the points' range.
_LABEL_SIZE = (0.05, 0.04)


def trade_off(settings: pd.DataFrame, outcome: str) -> go.Figure:
    """Mark each setting at its models' own accuracy and its merges' outcome; a line joins the Pareto front.

    `settings` has `setting`, `penalty`, `strength`, `own`, `merged`, the half-widths `own_half` and `merged_half` of
    their intervals, and `front`. Where settings lie close, only one is labelled, of the front if there is one; hovering
    names all.
    """
    settings = settings.assign(labelled=_apart(settings))
    figure = go.Figure(
        layout=figure_layout(
            xaxis={"title": {"text": "single-task accuracy"}},
            yaxis={"title": {"text": f"merged {outcome}"}},
            height=520,
        )
    )
    front = settings[settings["front"]].sort_values("own")
    figure.add_scatter(
        x=rounded(front["own"].to_numpy()),
        y=rounded(front["merged"].to_numpy()),
        mode="lines",
        name="Pareto front",
        line={"color": GREY, "dash": "dot"},
        hoverinfo="skip",
    )
    for position, (penalty, rows) in enumerate(settings.groupby("penalty", sort=False)):
        plain = penalty == "none"
        figure.add_scatter(
            x=rounded(rows["own"].to_numpy()),
            y=rounded(rows["merged"].to_numpy()),
            mode="markers+text",
            name="plain" if plain else str(penalty),
            text=[
                ("plain" if plain else f"{strength:.2g}") if labelled else ""
                for strength, labelled in zip(rows["strength"], rows["labelled"], strict=True)
            ],
            textposition="top center",
            textfont={"size": 10, "color": MUTED},
            error_x={"array": rounded(rows["own_half"].to_numpy()), "thickness": 1, "width": 2},
            error_y={"array": rounded(rows["merged_half"].to_numpy()), "thickness": 1, "width": 2},
            marker={
                "color": INK if plain else PALETTE[(position - 1) % len(PALETTE)],
                "symbol": "star" if plain else "circle",
                "size": 14 if plain else 9,
            },
            customdata=rows["setting"].tolist(),
            hovertemplate="%{customdata}<br>own %{x:.3f}, merged %{y:.3f}<extra></extra>",
        )
    return figure


def _apart(settings: pd.DataFrame) -> list[bool]:
    """Choose points whose labels do not overlap: plain's first, then the front's, then the rest in their order."""
    places = settings[["own", "merged"]].to_numpy(dtype=float)
    spread = np.ptp(places, axis=0)
    places = places / np.where(spread > 0, spread, 1)
    plain, front = settings["penalty"] == "none", settings["front"]
    chosen: list[int] = []
    for index in np.lexsort((~front, ~plain)):
        if all((np.abs(places[index] - places[other]) > _LABEL_SIZE).any() for other in chosen):
            chosen.append(int(index))
    return [index in chosen for index in range(len(settings))]


def changes_by_strength(changes: pd.DataFrame, outcome: str) -> go.Figure:
    """Draw each penalty's change of an outcome against its strength, with intervals over seeds."""
    strengths = sorted(set(changes["strength"]))
    figure = go.Figure(
        layout=figure_layout(
            xaxis={
                "title": {"text": "λ"},
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [f"{strength:g}" for strength in strengths],
            },
            yaxis={"title": {"text": f"change of {outcome}"}, "zerolinecolor": MUTED},
            height=440,
        )
    )
    for position, (penalty, rows) in enumerate(changes.groupby("penalty", sort=False)):
        rows = rows.sort_values("strength")
        figure.add_scatter(
            x=[f"{strength:g}" for strength in rows["strength"]],
            y=rounded(rows["change"].to_numpy()),
            mode="lines+markers",
            name=str(penalty),
            line={"color": PALETTE[position % len(PALETTE)], "width": 2},
            error_y={
                "array": rounded((rows["high"] - rows["change"]).to_numpy()),
                "thickness": 1,
                "width": 3,
            },
            hovertemplate=f"{in_template(penalty)}, λ = %{{x}}: %{{y:+.4f}}<extra></extra>",
        )
    return figure
