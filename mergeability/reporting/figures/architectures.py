"""Figures of a comparison of architectures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import (
    DIVERGING,
    MUTED,
    PALETTE,
    ROW_HEIGHT,
    figure_layout,
    label,
    rounded,
)


def metric_signs(rows: pd.DataFrame) -> go.Figure:
    """Show the correlation of each metric with the outcome under every method, as a heat map.

    Args:
        rows: one row per architecture, method and metric: `architecture`, `method`, `metric`, `r`, `r_low`, `r_high`.

    Returns:
        The figure: one row per metric, one column per architecture and method; cells whose interval excludes 0 have a
        dot.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import metric_signs
        >>> rows = pd.DataFrame(
        ...     {
        ...         "architecture": "wide", "method": ["ties", "tsv"], "metric": "cosine",
        ...         "r": [0.5, -0.1], "r_low": [0.2, -0.4], "r_high": [0.8, 0.2],
        ...     }
        ... )
        >>> figure = metric_signs(rows)
        >>> figure.data[0].x, figure.data[0].text
        (('wide: ties', 'wide: tsv'), (['•', ''],))
    """
    named = rows.assign(cell=rows["architecture"] + ": " + rows["method"])
    metrics, cells = (list(dict.fromkeys(named[name])) for name in ("metric", "cell"))
    values = np.full((len(metrics), len(cells)), np.nan)
    texts = [["" for _ in cells] for _ in metrics]
    for _, row in named.iterrows():
        place = metrics.index(row["metric"]), cells.index(row["cell"])
        values[place] = row["r"]
        texts[place[0]][place[1]] = "•" if row["r_low"] > 0 or row["r_high"] < 0 else ""
    return go.Figure(
        _correlations(values, cells, [label(name) for name in metrics], texts, "%{y}, %{x}"),
        layout=figure_layout(
            yaxis={"autorange": "reversed", "automargin": True},
            xaxis={"automargin": True, "tickangle": -60},
            height=220 + ROW_HEIGHT * len(metrics),
        ),
    )


def transfer_map(rows: pd.DataFrame) -> go.Figure:
    """Draw a heat map of the correlation between predictions and outcomes for fits transferred between architectures.

    Args:
        rows: one row per couple of architectures: `fitted_on`, `predicts`, `r`.

    Returns:
        The figure: one row per architecture on which predictors are fitted, one column per predicted architecture.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import transfer_map
        >>> rows = pd.DataFrame({"fitted_on": ["a", "b"], "predicts": ["b", "a"], "r": [0.5, 0.4]})
        >>> transfer_map(rows).data[0].z
        ([None, 0.5], [0.4, None])
    """
    names = list(dict.fromkeys([*rows["fitted_on"], *rows["predicts"]]))
    values = np.full((len(names), len(names)), np.nan)
    for _, row in rows.iterrows():
        values[names.index(row["fitted_on"]), names.index(row["predicts"])] = row["r"]
    texts = [["" if np.isnan(value) else f"{value + 0.0:.2f}" for value in row] for row in values]
    return go.Figure(
        _correlations(values, names, names, texts, "fitted on %{y}, predicts %{x}"),
        layout=figure_layout(
            xaxis={"title": {"text": "predicts"}, "automargin": True},
            yaxis={"title": {"text": "fitted on"}, "autorange": "reversed", "automargin": True},
            height=240 + 2 * ROW_HEIGHT * len(names),
        ),
    )


def _correlations(
    values: np.ndarray, x: Sequence[str], y: Sequence[str], texts: Sequence[Sequence[str]], place: str
) -> go.Heatmap:
    """Draw correlations from -1 to 1 as a heat map; `place` describes a cell when the pointer is on it."""
    return go.Heatmap(
        z=rounded(values),
        x=x,
        y=y,
        text=texts,
        texttemplate="%{text}",
        colorscale=DIVERGING,
        zmin=-1,
        zmax=1,
        colorbar={"title": {"text": "r"}},
        hovertemplate=f"{place}: %{{z:.2f}}<extra></extra>",
    )


def agreement_bars(rows: pd.DataFrame, measure: str, title: str) -> go.Figure:
    """Plot the agreement between fits, with its confidence interval, for each kind of comparison and each group.

    Args:
        rows: one row per kind of comparison and group: `kind`, `group`, and the columns of `measure`.
        measure: column of the agreement; `<measure>_low` and `<measure>_high` are the ends of its interval.
        title: of the axis.

    Returns:
        The figure, one colour per kind.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import agreement_bars
        >>> rows = pd.DataFrame(
        ...     {"kind": ["seeds"], "group": ["all"], "rho": [0.8], "rho_low": [0.7], "rho_high": [0.9]}
        ... )
        >>> agreement_bars(rows, "rho", "ρ").data[0].x
        (0.8,)
    """
    figure = go.Figure(
        layout=figure_layout(
            xaxis={"title": {"text": title}, "zerolinecolor": MUTED},
            yaxis={"autorange": "reversed", "automargin": True},
            height=180 + ROW_HEIGHT * len(rows),
        )
    )
    for position, (kind, own) in enumerate(rows.groupby("kind", sort=False)):
        value = own[measure].to_numpy(dtype=float)
        low, high = (own[f"{measure}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        figure.add_scatter(
            x=rounded(value),
            y=[f"{kind}: {group}" for group in own["group"]],
            mode="markers",
            name=str(kind),
            marker={"color": PALETTE[position % len(PALETTE)], "size": 9},
            error_x={
                "array": rounded(high - value),
                "arrayminus": rounded(value - low),
                "thickness": 1,
                "width": 3,
            },
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    return figure


def share_bars(rows: pd.DataFrame, parts: dict[str, str]) -> go.Figure:
    """Plot the shares of the variance of outcomes as stacked bars, one bar per architecture and method.

    Args:
        rows: one row per bar: `name`, and the columns of the parts.
        parts: column → name of the part.

    Returns:
        The figure.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import share_bars
        >>> rows = pd.DataFrame({"name": ["wide: ties"], "task_effects": [0.7], "residual": [0.3]})
        >>> [bar.name for bar in share_bars(rows, {"task_effects": "tasks", "residual": "rest"}).data]
        ['tasks', 'rest']
    """
    figure = go.Figure(
        layout=figure_layout(
            barmode="relative",
            xaxis={"title": {"text": "share of the variance over pairs"}, "zerolinecolor": MUTED},
            yaxis={"autorange": "reversed", "automargin": True},
            height=180 + ROW_HEIGHT * len(rows),
        )
    )
    for position, (column, name) in enumerate(parts.items()):
        figure.add_bar(
            x=rounded(rows[column].to_numpy(dtype=float)),
            y=rows["name"].tolist(),
            orientation="h",
            name=name,
            marker={"color": PALETTE[position % len(PALETTE)]},
            hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        )
    return figure
