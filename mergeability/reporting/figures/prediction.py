"""Draw the figures of predictors: their predictions, scores and coefficients."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from mergeability.reporting.figures.style import (
    BLUE,
    GREY,
    MUTED,
    ORANGE,
    PALETTE,
    ROW_HEIGHT,
    figure_layout,
    in_template,
    label,
    low,
    rounded,
    value_bounds,
)


def variance_bars(variance: pd.DataFrame) -> go.Figure:
    """Draw stacked bars of three shares of variance: task effects, what metrics explain in addition, and the rest.

    Args:
        variance: one row per method: `method`, `task_effects`, `metrics_beyond`, `residual`, in [0, 1].

    Returns:
        The figure, one trace per share.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import variance_bars
        >>> variance = pd.DataFrame(
        ...     {"method": ["ties"], "task_effects": [0.6], "metrics_beyond": [0.1], "residual": [0.3]}
        ... )
        >>> figure = variance_bars(variance)
        >>> len(figure.data), [trace.x for trace in figure.data], figure.layout.barmode
        (3, [(0.6,), (0.1,), (0.3,)], 'stack')
    """
    ordered = variance.iloc[::-1]
    figure = go.Figure(
        layout=figure_layout(
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
        ("task_effects", "task effects", BLUE),
        ("metrics_beyond", "metrics beyond task effects", ORANGE),
        ("residual", "neither", "#dbe4ee"),
    )
    for column, title, colour in shares:
        figure.add_bar(
            x=rounded(ordered[column].to_numpy(dtype=float)),
            y=[str(method) for method in ordered["method"]],
            orientation="h",
            name=title,
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.1%}<extra>" + in_template(title) + "</extra>",
        )
    return figure


def predicted_against_measured(predictions: pd.DataFrame, target_name: str) -> go.Figure:
    """Plot the validation predictions of every fold against the measured outcomes.

    By leave-one-task-out, each pair appears once for each of its tasks, predicted by the fit without that task.

    Args:
        predictions: one row per fold and pair: `held_out`, `task_a`, `task_b`, `measured`, `predicted`.
        target_name: name of the outcome, for the axes.

    Returns:
        The figure.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import predicted_against_measured
        >>> predictions = pd.DataFrame(
        ...     {
        ...         "held_out": ["a", "a"],
        ...         "task_a": ["a", "a"],
        ...         "task_b": ["b", "c"],
        ...         "measured": [0.8, 0.9],
        ...         "predicted": [0.82, 0.87],
        ...     }
        ... )
        >>> figure = predicted_against_measured(predictions, "normalised accuracy")
        >>> figure.data[0].text, figure.layout.xaxis.title.text
        (('a + b', 'a + c'), 'measured normalised accuracy')
    """
    folds = list(dict.fromkeys(predictions["held_out"]))
    colours = [PALETTE[folds.index(h) % len(PALETTE)] for h in predictions["held_out"]]
    ends = predictions["task_a"] + " + " + predictions["task_b"]
    measured = predictions["measured"].to_numpy(dtype=float)
    predicted = predictions["predicted"].to_numpy(dtype=float)
    low, high = value_bounds(measured)
    margin = 0.04 * (high - low)
    line = {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "layer": "below"}
    figure = go.Figure(
        go.Scatter(
            x=rounded(measured),
            y=rounded(predicted),
            mode="markers",
            text=ends.tolist(),
            customdata=predictions["held_out"].tolist(),
            marker={"color": colours, "size": 7, "opacity": 0.75, "line": {"width": 0}},
            hovertemplate="%{text}<br>without %{customdata}<br>measured %{x:.3f}, predicted %{y:.3f}<extra></extra>",
        ),
        layout=figure_layout(
            xaxis={"title": {"text": f"measured {target_name}"}, "range": [low - margin, high + margin]},
            yaxis={"title": {"text": f"predicted {target_name}"}},
            shapes=[{**line, "line": {"color": GREY, "width": 1.5, "dash": "dot"}}],
            height=440,
            showlegend=False,
        ),
    )
    return figure


def fold_correlations(folds: pd.DataFrame) -> go.Figure:
    """Draw each fold's validation correlation as a bar; draw no bar where it is undefined.

    Args:
        folds: one row per fold: `held_out` and `r`.

    Returns:
        The figure, smallest r first.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import fold_correlations
        >>> figure = fold_correlations(pd.DataFrame({"held_out": ["cars", "dtd"], "r": [0.6, -0.1]}))
        >>> figure.data[0].y, figure.data[0].x, figure.layout.xaxis.title.text
        (('dtd', 'cars'), (-0.1, 0.6), 'r on the pairs of the left-out task')
    """
    ordered = folds.sort_values("r", kind="stable", na_position="first")
    values = ordered["r"].to_numpy(dtype=float)
    return go.Figure(
        go.Bar(
            x=rounded(values, 3),
            y=[str(task) for task in ordered["held_out"]],
            orientation="h",
            marker={"color": [ORANGE if v < 0 else BLUE for v in values]},
            hovertemplate="without %{y}: r = %{x:.3f}<extra></extra>",
        ),
        layout=figure_layout(
            xaxis={
                "title": {"text": "r on the pairs of the left-out task"},
                "range": [min(-0.25, low(values)), 1],
            },
            yaxis={"dtick": 1, "tickfont": {"size": 11}, "showgrid": False, "type": "category"},
            height=max(300, 90 + 20 * len(ordered)),
            showlegend=False,
        ),
    )


def coefficient_bars(coefficients: pd.DataFrame) -> go.Figure:
    """Draw the mean coefficients over folds as bars, with their standard deviation over folds as whiskers.

    Args:
        coefficients: one row per fold and metric: `metric`, `coefficient`.

    Returns:
        The figure.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import coefficient_bars
        >>> coefficients = pd.DataFrame(
        ...     {"metric": ["cosine", "l2", "cosine", "l2"], "coefficient": [0.4, -0.1, 0.6, -0.1]}
        ... )
        >>> figure = coefficient_bars(coefficients)
        >>> figure.data[0].y, figure.data[0].x, figure.data[0].error_x.array
        (('l2', 'cosine'), (-0.1, 0.5), (0.0, 0.1))
    """
    groups = coefficients.groupby("metric", sort=False)["coefficient"]
    table = pd.DataFrame(
        {"mean": groups.mean(), "std": groups.std(ddof=0), "used": groups.agg(lambda c: (c != 0).mean())}
    )
    table = table.loc[table["mean"].abs().sort_values(kind="stable").index]
    means = table["mean"].to_numpy(dtype=float)
    labels = [label(str(name)) for name in table.index]
    return go.Figure(
        go.Bar(
            x=rounded(means, 5),
            y=labels,
            orientation="h",
            marker={"color": [ORANGE if m < 0 else BLUE for m in means]},
            error_x={
                "array": rounded(table["std"].to_numpy(), 5),
                "color": MUTED,
                "thickness": 1,
                "width": 2,
            },
            customdata=rounded(table["used"].to_numpy(dtype=float), 3),
            hovertemplate="%{y}<br>%{x:.4f}, used in %{customdata:.0%} of folds<extra></extra>",
        ),
        layout=figure_layout(
            xaxis={
                "title": {"text": "coefficient"},
                "zerolinecolor": MUTED,
            },
            yaxis={"dtick": 1, "tickfont": {"size": 11}, "showgrid": False, "type": "category"},
            height=90 + ROW_HEIGHT * len(table),
            showlegend=False,
        ),
    )


def predictor_comparison(records: pd.DataFrame, order: Sequence[str]) -> go.Figure:
    """Draw every predictor's r: one mark per method, and a bar for the mean over methods.

    Args:
        records: one row per predictor and method: `predictor`, `method`, `r_mean`.
        order: predictors from top to bottom; one without a defined r keeps an empty row.

    Returns:
        The figure.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.reporting.figures import predictor_comparison
        >>> records = pd.DataFrame({"predictor": ["ridge", "additive"], "method": "ties", "r_mean": [0.5, 0.6]})
        >>> figure = predictor_comparison(records, ["additive", "ridge"])
        >>> [trace.name for trace in figure.data], figure.data[0].x, figure.layout.xaxis.title.text
        (['mean over methods', 'ties'], (0.5, 0.6), 'mean r over left-out tasks')
    """
    top_down = list(order)[::-1]
    means = records.groupby("predictor")["r_mean"].mean().reindex(top_down)
    figure = go.Figure(
        go.Bar(
            x=rounded(means.to_numpy(dtype=float), 3),
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
            x=rounded(known["r_mean"].to_numpy(dtype=float), 3),
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
    layout = figure_layout(
        xaxis={
            "title": {"text": "mean r over left-out tasks"},
            "range": [min(-0.1, low(records["r_mean"])), 1.02],
        },
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": top_down, "showgrid": False},
        height=190 + 42 * len(top_down),
    )
    figure.update_layout(layout)
    return figure
