"""Build the JSON data of all pairs for the page's table and cards."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import printable
from mergeability.pipeline.result import Analysis
from mergeability.prediction.pair_table import TARGETS
from mergeability.prediction.validation.protocols import BOTH_NEW
from mergeability.reporting.page import MOST_ROWS, Section, embedded_json
from mergeability.reporting.prediction_parts import first_protocol, study_table
from mergeability.reporting.summaries import TARGET_NAMES
from mergeability.reporting.templates import render

_DIGITS, _LOWEST = 5, 5


def pair_section(analysis: Analysis) -> Section:
    """Show all pairs in a sortable and filterable table, and show a card with the details of each pair."""
    data = pair_data(analysis)
    columns = next(iter(data["outcomes"].values()), {}) or data["metrics"]
    body = render(
        "pairs",
        data=embedded_json(data),
        left_out=data["left_out"],
        example=f"{next(iter(columns), 'ties')}<0.8",
    )
    return Section("pairs", "What is known about each pair?", body)


def pair_data(analysis: Analysis) -> dict[str, Any]:
    """Return the data of all pairs as lists, with one list per column.

    At most `MOST_ROWS` pairs are kept, preferably pairs with outcomes; `left_out` counts the other pairs.

    Args:
        analysis: the results.

    Returns:
        `tasks`, and the places of each pair's tasks among them, `a` and `b`; `targets` with their names; `outcomes` by
        target and method, and `parts`, those of the two tasks; `predicted` by target and method with the ends of
        intervals, and a sentence on their origin, `predicted_by`; `metrics` and other `evidence` by name; `layers`.
        Values have five significant digits and are None where unknown.

    Examples:
        >>> from mergeability.pipeline.result import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> from mergeability.reporting.pair_data import pair_data
        >>> data = pair_data(Analysis("Six tasks", example_pairs(), ["cosine"], ["ties"]))
        >>> data["tasks"][:2], data["outcomes"]["norm_acc"]["ties"][:2], data["metrics"]["cosine"][:2]
        (['cars', 'dtd'], [0.84, 0.886], [0.0, 0.62])
    """
    pairs = _shown(analysis)
    places = {task: place for place, task in enumerate(analysis.tasks)}
    outcomes, parts = {}, {}
    for target in analysis.targets:
        methods = [method for method in analysis.methods if f"{target}_{method}" in pairs.columns]
        outcomes[target] = {method: _column(pairs[f"{target}_{method}"]) for method in methods}
        parts[target] = {
            method: [_column(pairs[f"{target}_{method}_{end}"]) for end in "ab"]
            for method in methods
            if {f"{target}_{method}_a", f"{target}_{method}_b"} <= set(pairs.columns)
        }
    predicted, origin = _predicted(analysis, pairs)
    metrics = [name for name in analysis.metrics if name in pairs.columns]
    return {
        "tasks": [printable(task) for task in analysis.tasks],
        "a": [places[str(task)] for task in pairs["task_a"]] if len(pairs) else [],
        "b": [places[str(task)] for task in pairs["task_b"]] if len(pairs) else [],
        "targets": [[target, TARGET_NAMES[target]] for target in analysis.targets],
        "names": TARGET_NAMES,
        "outcomes": outcomes,
        "parts": parts,
        "predicted": predicted,
        "predicted_by": origin,
        "metrics": {name: _column(pairs[name]) for name in metrics},
        "evidence": _evidence(analysis, pairs, metrics),
        "layers": _lowest_layers(analysis, pairs),
        "left_out": len(analysis.pairs) - len(pairs),
    }


def _shown(analysis: Analysis) -> pd.DataFrame:
    pairs = analysis.pairs
    if len(pairs) <= MOST_ROWS:
        return pairs
    columns = [f"{t}_{m}" for t in TARGETS for m in analysis.methods if f"{t}_{m}" in pairs.columns]
    if not columns:
        return pairs.head(MOST_ROWS)
    known = pairs[columns].notna().any(axis=1).to_numpy()
    return pairs.iloc[np.sort(np.argsort(~known, kind="stable")[:MOST_ROWS])]


def _evidence(analysis: Analysis, pairs: pd.DataFrame, metrics: list[str]) -> dict[str, list[float | None]]:
    """Keep the numbers that are neither metrics nor outcomes, such as probes, margins and scales."""
    used = {"task_a", "task_b", *metrics}
    for target in TARGETS:
        for method in analysis.methods:
            used |= {f"{target}_{method}", f"{target}_{method}_a", f"{target}_{method}_b"}
    others = [
        name for name in pairs.columns if name not in used and pd.api.types.is_numeric_dtype(pairs[name])
    ]
    return {printable(str(name)): _column(pairs[name]) for name in others if pairs[name].notna().any()}


def _predicted(analysis: Analysis, pairs: pd.DataFrame) -> tuple[dict[str, dict[str, Any]], str]:
    """Collect predictions with their intervals: by a fitted predictor, of unevaluated pairs, or by cross-validation."""
    ends = (
        list(zip(pairs["task_a"].astype(str), pairs["task_b"].astype(str), strict=True)) if len(pairs) else []
    )
    places = {pair: place for place, pair in enumerate(ends)}
    found: dict[str, dict[str, Any]] = {}
    origins = []

    def fill(
        target: str, method: str, rows: pd.DataFrame, value: str, low: pd.Series, high: pd.Series
    ) -> None:
        one = found.setdefault(target, {}).setdefault(
            method, {name: [None] * len(ends) for name in ("value", "low", "high")}
        )
        keys = zip(rows["task_a"].astype(str), rows["task_b"].astype(str), strict=True)
        for (a, b), *numbers in zip(keys, rows[value], low, high, strict=True):
            place = places.get((a, b), places.get((b, a)))
            if place is not None and one["value"][place] is None:
                one["value"][place], one["low"][place], one["high"][place] = map(_number, numbers)

    scores = analysis.scores
    if analysis.scorer is not None and len(scores):
        columns = [str(column) for column in scores if str(column).startswith("score_low_")]
        for name in (column.removeprefix("score_low_") for column in columns):
            fill(
                analysis.scorer.target,
                name,
                scores,
                f"score_{name}",
                scores[f"score_low_{name}"],
                scores[f"score_high_{name}"],
            )
        origins.append("These values are predictions by a predictor that was fitted in an earlier run.")
    others = analysis.predicted_pairs
    for target in TARGETS if len(others) else ():
        for method in analysis.methods:
            name = f"{target}_{method}"
            if f"predicted_{name}" in others:
                fill(
                    target,
                    method,
                    others,
                    f"predicted_{name}",
                    others[f"predicted_low_{name}"],
                    others[f"predicted_high_{name}"],
                )
    if len(others):
        origins.append("Outcomes of pairs that were not evaluated are predicted from the evaluated pairs.")
    origins += _cross_validated(analysis, fill)
    return found, " ".join(origins)


def _cross_validated(analysis: Analysis, fill: Any) -> list[str]:
    """Add predictions by fits without either task of a pair: by ridge, a fixed predictor to avoid selection bias."""
    protocol = first_protocol(analysis, BOTH_NEW)
    if analysis.prediction is None or not protocol:
        return []
    rows = analysis.prediction.predictions
    rows = rows[(rows["protocol"] == protocol) & (rows["predictor"] == "ridge")]
    if rows.empty:
        return []
    intervals = study_table(analysis, "intervals")
    level = float("nan")
    for (target, method), own in rows.groupby(["target", "method"], sort=False):
        half = float("nan")
        if len(intervals):
            same = intervals[
                (intervals["protocol"] == protocol) & (intervals["predictor"] == "ridge")
                & (intervals["target"] == target) & (intervals["method"] == method)
            ]  # fmt: skip
            half = float(same["half_width"].iloc[0]) if len(same) else half
            level = float(same["level"].iloc[0]) if len(same) else level
        fill(str(target), str(method), own, "predicted", own["predicted"] - half, own["predicted"] + half)
    share = "" if math.isnan(level) else f" The interval is meant to contain {level:.0%} of outcomes."
    return [f"Predicted by ridge on the metrics, fitted on the pairs without either task.{share}"]


def _lowest_layers(analysis: Analysis, pairs: pd.DataFrame) -> dict[str, Any] | None:
    """List the layers with the lowest cosines of each pair."""
    layers = analysis.layers
    if layers.empty or pairs.empty:
        return None
    names = list(dict.fromkeys(layers["layer"]))
    index = {name: place for place, name in enumerate(names)}
    known = layers[layers["cosine"].notna()].sort_values("cosine", kind="stable")
    lowest = {
        pair: [
            [index[layer], _number(cosine)]
            for layer, cosine in zip(rows["layer"], rows["cosine"], strict=True)
        ]
        for pair, rows in known.groupby(["task_a", "task_b"], sort=False)
        .head(_LOWEST)
        .groupby(["task_a", "task_b"])
    }
    ends = zip(pairs["task_a"], pairs["task_b"], strict=True)
    return {"names": [printable(name) for name in names], "lowest": [lowest.get(pair, []) for pair in ends]}


def _column(values: Iterable[Any]) -> list[float | None]:
    return [_number(value) for value in np.asarray(values, dtype=float).tolist()]


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
