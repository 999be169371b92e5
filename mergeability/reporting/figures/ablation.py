"""Draw the figures that compare settings of fine-tuning."""

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
    """Plot the outcome of merges against single-task accuracy, with one point per setting, and the Pareto front.

    Args:
        settings: one row per setting: `setting`, `penalty`, `strength`, `own`, `merged`, the half-widths `own_half`
            and `merged_half` of their intervals, and `front`, whether no setting is better in both.
        outcome: name of the merges' outcome, for the axis.

    Returns:
        The figure. Of overlapping labels only one is drawn, if possible of the front; hovering names every setting.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import trade_off
        >>> settings = pd.DataFrame(
        ...     {
        ...         "setting": ["none-0", "l2-0.1"],
        ...         "penalty": ["none", "l2"],
        ...         "strength": [0.0, 0.1],
        ...         "own": [0.95, 0.93],
        ...         "merged": [0.80, 0.84],
        ...         "own_half": [0.01, 0.01],
        ...         "merged_half": [0.02, 0.02],
        ...         "front": [True, True],
        ...     }
        ... )
        >>> figure = trade_off(settings, "accuracy")
        >>> [trace.name for trace in figure.data], figure.layout.yaxis.title.text
        (['Pareto front', 'plain', 'l2'], 'merged accuracy')
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
    """Plot the change of an outcome under each penalty against the penalty's strength, with intervals over seeds.

    Args:
        changes: one row per penalty and strength: `penalty`, `strength`, `change` and `high`, the upper end of its
            interval.
        outcome: name of the outcome, for the axis.

    Returns:
        The figure, one line per penalty.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import changes_by_strength
        >>> changes = pd.DataFrame(
        ...     {"penalty": ["l2", "l2"], "strength": [0.1, 1.0], "change": [0.01, -0.02], "high": [0.02, 0.01]}
        ... )
        >>> figure = changes_by_strength(changes, "normalised accuracy")
        >>> figure.data[0].name, figure.data[0].y, figure.layout.yaxis.title.text
        ('l2', (0.01, -0.02), 'change of normalised accuracy')
    """
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
