"""Draw the figures of an analysis for a tracking service."""

from collections.abc import Mapping

import plotly.graph_objects as go

from mergeability.pipeline.result import Analysis
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.validation.folds import TASK_PREFIX
from mergeability.reporting import figures
from mergeability.reporting import logged_names as names
from mergeability.reporting.prediction_parts import first_protocol
from mergeability.reporting.summaries import KNOWN_PARTNER, TARGET_NAMES, best_predictor


def figures_of(analysis: Analysis) -> dict[str, go.Figure]:
    """Draw the report's figures of merges and predictions for the first outcome.

    Args:
        analysis: the results.

    Returns:
        Name → figure; those without data are left out. `figures/pairs`: heat maps of the outcome of every method.
        `figures/predicted` and `figures/coefficients`: predicted outcomes against measured outcomes, and coefficients,
        for every method, with the predictor that predicts the method best from metrics. `figures/fingerprints`: the
        mean coefficients of every metric and method.
    """
    target = analysis.targets[0] if analysis.targets else TARGETS[0]
    found = {
        names.HEAT_MAP: with_menu(_heat_maps(analysis, target)),
        names.PREDICTED: with_menu(_scatters(analysis, target)),
        names.COEFFICIENTS: with_menu(_coefficients(analysis, target)),
        names.FINGERPRINTS: _fingerprints(analysis, target),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def with_menu(choices: Mapping[str, go.Figure]) -> go.Figure | None:
    """Combine figures into one with a menu that selects the visible figure; return None if there are no figures."""
    if not choices:
        return None
    drawn = {name: figure.to_plotly_json() for name, figure in choices.items()}
    first = next(iter(drawn))
    traces = [(name, trace) for name, figure in drawn.items() for trace in figure["data"]]
    whole = go.Figure(
        [{**trace, "visible": name == first} for name, trace in traces], layout=drawn[first]["layout"]
    )
    buttons = [
        {
            "label": figures.label(name),
            "method": "update",
            "args": [{"visible": [owner == name for owner, _ in traces]}, figure["layout"]],
        }
        for name, figure in drawn.items()
    ]
    if len(buttons) > 1:
        whole.update_layout(updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15}])
    return whole


def _heat_maps(analysis: Analysis, target: str) -> dict[str, go.Figure]:
    columns = {m: f"{target}_{m}" for m in analysis.methods if f"{target}_{m}" in analysis.pairs.columns}
    if not columns or not analysis.tasks:
        return {}
    shared = figures.shared_bounds(analysis.pairs[list(columns.values())])
    return {
        method: figures.matrix_heat_map(
            figures.pair_matrix(analysis.pairs, column, analysis.tasks),
            analysis.tasks,
            shared,
            TARGET_NAMES[target],
        )
        for method, column in columns.items()
    }


def _best(analysis: Analysis, target: str) -> dict[str, str]:
    """Name the predictor of every method that predicts it best from metrics."""
    records = analysis.prediction.records if analysis.prediction is not None else []
    found = {method: best_predictor(records, target, method) for method in analysis.methods}
    return {method: name for method, name in found.items() if name is not None}


def _scatters(analysis: Analysis, target: str) -> dict[str, go.Figure]:
    if analysis.prediction is None or analysis.prediction.predictions.empty:
        return {}
    rows = analysis.prediction.of(first_protocol(analysis, KNOWN_PARTNER)).predictions
    found = {}
    for method, predictor in _best(analysis, target).items():
        own = rows[(rows["method"] == method) & (rows["predictor"] == predictor) & (rows["target"] == target)]
        if len(own):
            found[method] = figures.predicted_against_measured(own, f"{TARGET_NAMES[target]}, {predictor}")
    return found


def _coefficients(analysis: Analysis, target: str) -> dict[str, go.Figure]:
    if analysis.prediction is None or analysis.prediction.coefficients.empty:
        return {}
    rows = analysis.prediction.of(first_protocol(analysis, KNOWN_PARTNER)).coefficients
    found = {}
    for method, predictor in _best(analysis, target).items():
        own = rows[(rows["method"] == method) & (rows["predictor"] == predictor) & (rows["target"] == target)]
        if len(own):
            found[method] = figures.coefficient_bars(own)
    return found


def _fingerprints(analysis: Analysis, target: str) -> go.Figure | None:
    if analysis.prediction is None or analysis.prediction.coefficients.empty:
        return None
    rows = analysis.prediction.coefficients
    rows = rows[(rows["target"] == target) & ~rows["metric"].astype(str).str.startswith(TASK_PREFIX)]
    # One predictor for all methods, so that their coefficients can be compared: the one with most of them.
    counts = rows["predictor"].value_counts()
    if counts.empty:
        return None
    rows = rows[rows["predictor"] == ("ridge" if "ridge" in counts.index else counts.index[0])]
    means = rows.pivot_table(index="metric", columns="method", values="coefficient", sort=False)
    return figures.labelled_heat_map(
        means.to_numpy(dtype=float),
        [figures.label(str(name)) for name in means.index],
        [str(name) for name in means.columns],
        {},
        "coefficient",
    )
