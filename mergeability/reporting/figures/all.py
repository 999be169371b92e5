"""Figures of the report: plain functions from tables to Plotly figures."""

from collections.abc import Mapping, Sequence

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

_ACCURACIES = (
    ("chance", "chance", "#d5dbe1"),
    ("pixel_accuracy", "logistic regression on pixels", "#e6a532"),
    ("base_accuracy", "base model, zero-shot", "#7fb3d9"),
    ("finetuned_accuracy", "fine-tuned", BLUE),
)
_CELL_TEXT_TASKS = 12
_ROW_HEIGHT = 22
# Up to so many sets, each is drawn beside its box.
_FEW_SETS = 60
# Of a label, as shares of the width and height of the points' range.
_LABEL_SIZE = (0.05, 0.04)


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


def accuracy_bars(models: pd.DataFrame) -> go.Figure:
    """Show chance, pixels, base and fine-tuned accuracy of every task, side by side."""
    figure = go.Figure(layout=_layout(yaxis={"title": {"text": "test accuracy"}, "range": [0, 1.02]}))
    for column, label, colour in _ACCURACIES:
        if column in models.columns and models[column].notna().any():
            heights = _rounded(models[column].to_numpy(dtype=float))
            figure.add_bar(x=[str(t) for t in models.index], y=heights, name=label, marker={"color": colour})
    figure.update_layout(
        barmode="group", bargap=0.25, height=380, xaxis={"tickangle": -40, "type": "category"}
    )
    return figure


def matrix_heat_map(
    matrix: Float[np.ndarray, "T T"],
    labels: Sequence[str],
    bounds: tuple[float, float] | None = None,
    name: str = "value",
) -> go.Figure:
    """Draw a symmetric matrix; values of both signs get a diverging scale centred on 0.

    `bounds` fixes the colour scale, so that matrices can be compared.
    """
    low, high = bounds or _bounds(matrix)
    signed = low < 0 < high
    if signed:
        high = max(-low, high)
        low = -high
    roomy = len(labels) <= _CELL_TEXT_TASKS
    text = cell_texts(matrix) if roomy else None
    trace = go.Heatmap(
        z=_rounded(matrix, 5),
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
        hovertemplate="%{y} + %{x}<br>" + name + " %{z:.4g}<extra></extra>",
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
    layout = _layout(
        # What was not measured shows this ground instead of a colour of the scale.
        plot_bgcolor="#eef1f4",
        xaxis={**ticks, "tickangle": -60, "constrain": "domain"},
        yaxis={**ticks, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
    )
    return go.Figure(trace, layout=layout)


def labelled_heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    beside: Mapping[str, Float[np.ndarray, "rows columns"]],
    name: str,
    limit: float | None = None,
) -> go.Figure:
    """Draw a table of signed numbers on a scale centred on 0; what is `beside` shows where one points.

    Beyond ±`limit` colours do not change.
    """
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    largest = largest if limit is None else min(largest, limit)
    custom = np.stack(list(beside.values()), axis=-1) if beside else None
    more = "".join(f"<br>{title} %{{customdata[{i}]:.3g}}" for i, title in enumerate(beside))
    return go.Figure(
        go.Heatmap(
            z=_rounded(values, 3),
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
            customdata=None if custom is None else _rounded(custom, 4),
            hovertemplate="%{y}, %{x}<br>" + name + " %{z:.3f}" + more + "<extra></extra>",
        ),
        layout=_layout(
            plot_bgcolor="#eef1f4",
            xaxis={"type": "category", "showgrid": False, "side": "top", "title": {"text": name}},
            yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "tickfont": {"size": 11}},
            height=130 + _ROW_HEIGHT * len(rows),
        ),
    )


def variance_bars(variance: pd.DataFrame) -> go.Figure:
    """Stack the shares of variance of each method: task effects, metrics beyond them, and the rest."""
    ordered = variance.iloc[::-1]
    figure = go.Figure(
        layout=_layout(
            barmode="stack",
            xaxis={
                "title": {"text": "share of the variance over pairs"},
                "range": [0, 1],
                "tickformat": ".0%",
            },
            yaxis={"type": "category", "showgrid": False},
            height=170 + 30 * len(variance),
        )
    )
    shares = (
        ("task_effects", "who is in the pair", BLUE),
        ("metrics_beyond", "metrics beyond that", ORANGE),
        ("residual", "neither", "#dbe4ee"),
    )
    for column, title, colour in shares:
        figure.add_bar(
            x=_rounded(ordered[column].to_numpy(dtype=float)),
            y=[str(method) for method in ordered["method"]],
            orientation="h",
            name=title,
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.1%}<extra>" + title + "</extra>",
        )
    return figure


def predicted_against_measured(predictions: pd.DataFrame, target_name: str) -> go.Figure:
    """Scatter the validation predictions of every fold; on the diagonal a prediction is exact.

    Each pair appears once for each of its tasks, predicted by the fit that left that task out.
    """
    folds = list(dict.fromkeys(predictions["held_out"]))
    colours = [PALETTE[folds.index(h) % len(PALETTE)] for h in predictions["held_out"]]
    ends = predictions["task_a"] + " + " + predictions["task_b"]
    hover = [f"{pair}<br>without {task}" for pair, task in zip(ends, predictions["held_out"], strict=True)]
    measured = predictions["measured"].to_numpy(dtype=float)
    predicted = predictions["predicted"].to_numpy(dtype=float)
    low, high = _bounds(measured)
    margin = 0.04 * (high - low)
    line = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "layer": "below"}
    figure = go.Figure(
        go.Scatter(
            x=_rounded(measured),
            y=_rounded(predicted),
            mode="markers",
            text=hover,
            marker={"color": colours, "size": 7, "opacity": 0.75, "line": {"width": 0}},
            hovertemplate="%{text}<br>measured %{x:.3f}, predicted %{y:.3f}<extra></extra>",
        ),
        layout=_layout(
            xaxis={"title": {"text": f"measured {target_name}"}, "range": [low - margin, high + margin]},
            yaxis={"title": {"text": f"predicted {target_name}"}},
            shapes=[{**line, "line": {"color": GREY, "width": 1.5, "dash": "dot"}}],
            height=440,
            showlegend=False,
        ),
    )
    return figure


def fold_correlations(folds: pd.DataFrame) -> go.Figure:
    """Show each fold's validation correlation; folds without a defined one stay empty."""
    ordered = folds.sort_values("r", kind="stable", na_position="first")
    values = ordered["r"].to_numpy(dtype=float)
    return go.Figure(
        go.Bar(
            x=_rounded(values, 3),
            y=[str(task) for task in ordered["held_out"]],
            orientation="h",
            marker={"color": [ORANGE if v < 0 else BLUE for v in values]},
            hovertemplate="without %{y}: r = %{x:.3f}<extra></extra>",
        ),
        layout=_layout(
            xaxis={
                "title": {"text": "r on the pairs of the left-out task"},
                "range": [min(-0.25, _low(values)), 1],
            },
            yaxis={"dtick": 1, "tickfont": {"size": 11}, "showgrid": False, "type": "category"},
            height=max(300, 90 + 20 * len(ordered)),
            showlegend=False,
        ),
    )


def coefficient_bars(coefficients: pd.DataFrame) -> go.Figure:
    """Show coefficients averaged over folds, largest first, whiskers showing their spread over folds."""
    groups = coefficients.groupby("metric", sort=False)["coefficient"]
    table = pd.DataFrame(
        {"mean": groups.mean(), "std": groups.std(ddof=0), "used": groups.agg(lambda c: (c != 0).mean())}
    )
    table = table.loc[table["mean"].abs().sort_values(kind="stable").index]
    means = table["mean"].to_numpy(dtype=float)
    labels = [label(str(name)) for name in table.index]
    return go.Figure(
        go.Bar(
            x=_rounded(means, 5),
            y=labels,
            orientation="h",
            marker={"color": [ORANGE if m < 0 else BLUE for m in means]},
            error_x={
                "array": _rounded(table["std"].to_numpy(), 5),
                "color": MUTED,
                "thickness": 1,
                "width": 2,
            },
            customdata=_rounded(table["used"].to_numpy(dtype=float), 3),
            hovertemplate="%{y}<br>%{x:.4f}, used in %{customdata:.0%} of folds<extra></extra>",
        ),
        layout=_layout(
            xaxis={
                "title": {"text": "coefficient"},
                "zerolinecolor": MUTED,
            },
            yaxis={"dtick": 1, "tickfont": {"size": 11}, "showgrid": False, "type": "category"},
            height=90 + _ROW_HEIGHT * len(table),
            showlegend=False,
        ),
    )


def predictor_comparison(records: pd.DataFrame, order: Sequence[str]) -> go.Figure:
    """Mark every predictor's mean r under each method, and its mean over methods as a bar.

    `order` runs from top to bottom. A predictor without a defined r keeps its row, empty.
    """
    top_down = list(order)[::-1]
    means = records.groupby("predictor")["r_mean"].mean().reindex(top_down)
    figure = go.Figure(
        go.Bar(
            x=_rounded(means.to_numpy(dtype=float), 3),
            y=top_down,
            orientation="h",
            name="mean over methods",
            width=0.62,
            marker={"color": "#dbe4ee"},
            hovertemplate="%{y}: %{x:.3f}<extra>mean over methods</extra>",
        )
    )
    for position, (method, rows) in enumerate(records.groupby("method", sort=False)):
        known = rows[rows["r_mean"].notna()]
        figure.add_scatter(
            x=_rounded(known["r_mean"].to_numpy(dtype=float), 3),
            y=known["predictor"].tolist(),
            mode="markers",
            name=str(method),
            marker={
                "color": PALETTE[position % len(PALETTE)],
                "size": 9,
                "line": {"color": "white", "width": 1},
            },
            hovertemplate="%{y}: r = %{x:.3f}<extra>" + str(method) + "</extra>",
        )
    layout = _layout(
        xaxis={
            "title": {"text": "mean r over left-out tasks"},
            "range": [min(-0.1, _low(records["r_mean"])), 1.02],
        },
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": top_down, "showgrid": False},
        height=190 + 42 * len(top_down),
    )
    figure.update_layout(layout)
    return figure


def scale_curves(curves: pd.DataFrame) -> go.Figure:
    """Draw each method's mean normalised validation accuracy against α, its best α marked."""
    figure = go.Figure(
        layout=_layout(
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
            y=_rounded(heights),
            mode="lines+markers",
            name=str(method),
            line={"color": PALETTE[position % len(PALETTE)], "width": 2},
            marker={"size": [10 if at else 5 for at in best]},
            hovertemplate="α = %{x}: %{y:.3f}<extra>" + str(method) + "</extra>",
        )
    return figure


def chosen_scales(curves: pd.DataFrame) -> go.Figure:
    """Show for each method the share of merges for which each α of the grid was best."""
    shares = curves.pivot_table(index="method", columns="alpha", values="chosen", sort=False)
    shares = shares[sorted(shares.columns)]
    values = shares.to_numpy(dtype=float)
    return go.Figure(
        go.Heatmap(
            z=_rounded(values),
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
        layout=_layout(
            xaxis={"title": {"text": "best α"}, "type": "category", "showgrid": False},
            yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
            height=max(260, 120 + 30 * len(shares)),
        ),
    )


def set_outcomes(sets: pd.DataFrame, columns: Sequence[str]) -> go.Figure:
    """Show the normalised accuracy of all sets, one box a method and number of models."""
    figure = go.Figure(
        layout=_layout(
            xaxis={"title": {"text": "models in a set"}, "type": "category"},
            yaxis={"title": {"text": "normalised accuracy"}},
            boxmode="group",
            height=440,
        )
    )
    for position, column in enumerate(name for name in columns if name in sets.columns):
        figure.add_box(
            x=[str(arity) for arity in sets["arity"]],
            y=_rounded(sets[column].to_numpy(dtype=float)),
            name=column.removeprefix("norm_acc_"),
            marker={"color": PALETTE[position % len(PALETTE)], "size": 4},
            boxpoints="all" if len(sets) <= _FEW_SETS else "outliers",
            text=sets["tasks"].tolist(),
            hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        )
    return figure


def trade_off(settings: pd.DataFrame, outcome: str) -> go.Figure:
    """Mark each setting at its models' own accuracy and its merges' outcome; a line joins the Pareto front.

    `settings` has `setting`, `penalty`, `strength`, `own`, `merged`, the half-widths `own_half` and `merged_half` of
    their intervals, and `front`. Where settings lie close, only one is labelled, of the front if there is one; hovering
    names all.
    """
    settings = settings.assign(labelled=_apart(settings))
    figure = go.Figure(
        layout=_layout(
            xaxis={"title": {"text": "single-task accuracy"}},
            yaxis={"title": {"text": f"merged {outcome}"}},
            height=520,
        )
    )
    front = settings[settings["front"]].sort_values("own")
    figure.add_scatter(
        x=_rounded(front["own"].to_numpy()),
        y=_rounded(front["merged"].to_numpy()),
        mode="lines",
        name="Pareto front",
        line={"color": GREY, "dash": "dot"},
        hoverinfo="skip",
    )
    for position, (penalty, rows) in enumerate(settings.groupby("penalty", sort=False)):
        plain = penalty == "none"
        figure.add_scatter(
            x=_rounded(rows["own"].to_numpy()),
            y=_rounded(rows["merged"].to_numpy()),
            mode="markers+text",
            name="plain" if plain else str(penalty),
            text=[
                ("plain" if plain else f"{strength:.2g}") if labelled else ""
                for strength, labelled in zip(rows["strength"], rows["labelled"], strict=True)
            ],
            textposition="top center",
            textfont={"size": 10, "color": MUTED},
            error_x={"array": _rounded(rows["own_half"].to_numpy()), "thickness": 1, "width": 2},
            error_y={"array": _rounded(rows["merged_half"].to_numpy()), "thickness": 1, "width": 2},
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
        layout=_layout(
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
            y=_rounded(rows["change"].to_numpy()),
            mode="lines+markers",
            name=str(penalty),
            line={"color": PALETTE[position % len(PALETTE)], "width": 2},
            error_y={
                "array": _rounded((rows["high"] - rows["change"]).to_numpy()),
                "thickness": 1,
                "width": 3,
            },
            hovertemplate=f"{penalty}, λ = %{{x}}: %{{y:+.4f}}<extra></extra>",
        )
    return figure


def label(name: str) -> str:
    """Write a column name for a reader."""
    return name.removeprefix(TASK_PREFIX) if name.startswith(TASK_PREFIX) else name.replace("_", " ")


def shared_bounds(columns: pd.DataFrame) -> tuple[float, float]:
    """Find one range for the colour scale of several columns."""
    return _bounds(columns.to_numpy(dtype=float))


def _bounds(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _low(values: "np.ndarray | pd.Series") -> float:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.min()) * 1.05 if known.size else 0.0


def _rounded(values: np.ndarray, digits: int = 4) -> list:
    """Shorten numbers, as they travel as text: significant digits for small ones, decimals for the rest."""
    values = np.asarray(values, dtype=float)
    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    extra = 0 if largest >= 0.1 or largest == 0 else int(-np.floor(np.log10(largest)))
    rounded = np.round(values, digits + extra).astype(object)
    rounded[np.isnan(values)] = None
    return rounded.tolist()


def cell_texts(matrix: Float[np.ndarray, "T T"]) -> list[list[str]]:
    """Write all cells in one notation, chosen by the largest magnitude, so that they can be compared.

    Two decimals, fewer for large values; scientific where the whole matrix is tiny or huge. Undefined cells are
    empty.
    """
    largest = float(np.nanmax(np.abs(matrix), initial=0.0)) if not np.isnan(matrix).all() else 0.0
    ordinary = largest == 0 or 0.05 <= largest < 10_000
    form = f".{0 if largest >= 100 else 1 if largest >= 10 else 2}f" if ordinary else ".1e"
    return [["" if np.isnan(value) else f"{value + 0.0:{form}}" for value in row] for row in matrix]


def _layout(**parts: object) -> dict:
    """Leave the common look (fonts, margins, grid) to the page, which sets it once for all figures."""
    return {"template": go.layout.Template(), **parts}
