"""Write the first sentences of a report: on the data, the quality of the merges and the best predictor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mergeability.pipeline.result import Analysis
from mergeability.prediction.study import SIGNIFICANT
from mergeability.prediction.validation.protocols import BOTH_NEW
from mergeability.reporting.summaries import (
    SCALE_SUFFIXES,
    TARGET_NAMES,
    WITH_TASK_EFFECTS,
    best_predictor,
    method_table,
    pair_extremes,
    predictor_table,
    scale_table,
    sets_table,
)


@dataclass(frozen=True)
class Findings:
    """Hold the main findings of an analysis by subject; every subject except the first may be empty.

    Attributes:
        compared: the numbers of tasks, pairs, metrics and methods.
        budget: which pairs were evaluated.
        merges: which methods merge best and worst, and the effect of α.
        extremes: which pairs merge best and worst.
        sets: the best method for more than two models.
        prediction: how well predictors do on left-out tasks, with their uncertainty.
        new_tasks: those of `prediction` that are about pairs of two new tasks.
    """

    compared: str
    budget: tuple[str, ...] = ()
    merges: tuple[str, ...] = ()
    extremes: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    prediction: tuple[str, ...] = ()
    new_tasks: tuple[str, ...] = ()


def findings(analysis: Analysis) -> Findings:
    """Summarise the findings of an analysis, with their uncertainty, in sentences."""
    records = analysis.prediction.records if analysis.prediction is not None else []
    measured = _measured_methods(analysis)
    return Findings(
        _what_was_compared(analysis),
        tuple(analysis.of_budget),
        tuple(_merging_sentences(analysis, measured)),
        tuple(_extreme_sentences(analysis, measured)),
        tuple(_set_sentences(analysis)),
        tuple(_prediction_sentences(analysis) if records else _unpredicted(analysis)),
        tuple(_both_new_sentences(records, records[0]["target"])) if records else (),
    )


def headline(analysis: Analysis) -> list[str]:
    """Return the sentences of all findings as one list."""
    found = findings(analysis)
    return [found.compared, *found.budget, *found.merges, *found.extremes, *found.sets, *found.prediction]


def _unpredicted(analysis: Analysis) -> list[str]:
    """Explain why there is no study of predictors."""
    if analysis.merged:
        count = len(analysis.pairs) if len(analysis.pairs) else len(analysis.sets)
        return [
            f"Merges of {counted(count, 'pair or set', 'pairs or sets')} by {', '.join(analysis.merged)} were probed on"
            " unlabelled images; none was evaluated with labels."
        ]
    if analysis.targets or len(analysis.sets):
        return ["Prediction was not part of this run."]
    if len(analysis.scores):
        return [
            "No merge was evaluated: a predictor fitted on earlier merges scored"
            f" {counted(len(analysis.scores), 'pair')}."
        ]
    return ["No merge was evaluated, so this report says how the models relate, not how they merge."]


def _what_was_compared(analysis: Analysis) -> str:
    parts = [
        counted(len(analysis.tasks), "task"),
        counted(len(analysis.pairs), "pair"),
        counted(len(analysis.metrics), "metric"),
    ]
    if analysis.methods:
        own = {_plain(method) for method in analysis.methods}
        parts.append(counted(len(own), "merge method"))
    return f"This run compares {', '.join(parts[:-1])} and {parts[-1]}."


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Format a number with a noun in singular or plural."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def _measured_methods(analysis: Analysis) -> pd.DataFrame:
    """Summarise the methods with outcomes of the first target, in the order of the verdict."""
    if not analysis.targets:
        return pd.DataFrame()
    target = analysis.targets[0]
    table = method_table(analysis.pairs, analysis.methods, analysis.alphas)
    return table.loc[list(analysis.ranked_methods(target).index)]


def _merging_sentences(analysis: Analysis, table: pd.DataFrame) -> list[str]:
    if not analysis.targets:
        return []
    if table.empty:
        return ["No merge has a measured outcome."]
    target = analysis.targets[0]
    best = table.iloc[0]
    sentences = [best_method(str(best.name), best, target)]
    if len(table) > 1:
        last = table.iloc[-1]
        sentences.append(
            f"The worst method is {last.name}: mean {last[f'mean_{target}']:.1%}, worst pair"
            f" {last[f'worst_{target}']:.1%} ({last['worst_pair']})."
        )
    return [*sentences, *_scale_sentences(analysis)]


def best_method(name: str, row: pd.Series, target: str) -> str:
    """State which method merges best, in one sentence.

    Args:
        name: of the method.
        row: of `method_table`.
        target: the outcome.
    """
    return (
        f"{name} merges best on average: mean {TARGET_NAMES[target]} {row[f'mean_{target}']:.1%}"
        f" over {counted(int(row['n_pairs']), 'pair')}, and {row[f'worst_{target}']:.1%} on its worst,"
        f" {row['worst_pair']}."
    )


def _extreme_sentences(analysis: Analysis, table: pd.DataFrame) -> list[str]:
    """Name the pairs that merge best and worst, averaged over methods."""
    if len(table) < 2:
        return []
    extremes = pair_extremes(analysis.pairs, list(table.index), analysis.targets[0])
    if extremes is None:
        return []
    good, high, bad, low = extremes
    return [f"Averaged over methods, {good} merges best ({high:.1%}) and {bad} worst ({low:.1%})."]


def _set_sentences(analysis: Analysis) -> list[str]:
    table = sets_table(analysis)
    sentences = []
    for arity, group in table.groupby("arity") if len(table) else ():
        best = group.iloc[0]
        sentences.append(
            f"The best method for merging {arity} models at once is {best['method']}: mean normalised accuracy"
            f" {best['mean']:.1%}"
            f" over {counted(int(best['sets']), 'set')}."
        )
    return sentences


def _scale_sentences(analysis: Analysis) -> list[str]:
    table = scale_table(analysis)
    if not {"mean", "tuned_mean"} <= set(table.columns):
        return []
    gain = table["tuned_mean"] - table["mean"]
    most = table.index[int(gain.argmax())]
    own, tuned = table.iloc[int(table["mean"].argmax())], table.iloc[0]
    return [
        f"Tuning α on validation images changes the mean by {100 * gain.min():+.1f} to {100 * gain.max():+.1f} points"
        f" (most for {most}): the best method is {own.name} at its own α ({own['mean']:.1%}) and {tuned.name} at the"
        f" tuned one ({tuned['tuned_mean']:.1%})."
    ]


def _prediction_sentences(analysis: Analysis) -> list[str]:
    prediction = analysis.prediction
    if prediction is None:
        return []
    target = prediction.records[0]["target"]
    sentences = _known_partner_sentences(prediction.records, target)
    sentences += _both_new_sentences(prediction.records, target)
    sentences += _beyond_sentences(prediction.tables.get("relabelling", pd.DataFrame()), target)
    tasks = len(analysis.tasks)
    if tasks < 15:
        sentences.append(
            f"With {tasks} tasks, each of these correlations is computed from at most {tasks - 1} pairs, so"
            " they are rough estimates."
        )
    if best_predictor(prediction.records, target) is not None:
        sentences.append(
            "The best predictor was selected on the same folds, so its r is slightly optimistic."
        )
    return sentences


def _known_partner_sentences(records: Sequence[Mapping[str, Any]], target: str) -> list[str]:
    table = predictor_table(records, target)
    best = best_predictor(records, target)
    if best is None:
        return (
            ["No predictor that uses metrics has a defined correlation with the outcome."]
            if len(table)
            else []
        )
    row = table.loc[best]
    sentences = [
        f"For pairs with one new task, the best predictor that uses metrics, {best}, reaches a mean correlation"
        f" of r = {row['r_mean']:.2f} with {TARGET_NAMES[target]} (± {row['r_std']:.2f} between left-out"
        f" tasks, mean over methods); its mean absolute error is {row['mae']:.3f}{_beside_mean(table)}."
    ]
    additive = table["r_mean"].get("additive", float("nan"))
    if not np.isnan(additive):
        beats = row["r_mean"] > additive
        sentences.append(
            "The additive baseline predicts from each task's average outcome in other merges, without metrics, and"
            f" reaches r = {additive:.2f}. In this analysis, the metrics predict {'better' if beats else 'no better'}"
            f" than these averages.{_together(table)}"
        )
    return sentences


def _together(table: pd.DataFrame) -> str:
    known = [name for name in WITH_TASK_EFFECTS if not np.isnan(table["r_mean"].get(name, float("nan")))]
    return "".join(
        f" Metrics and averages together ({name}) reach r = {table['r_mean'][name]:.2f}." for name in known
    )


def _both_new_sentences(records: Sequence[Mapping[str, Any]], target: str) -> list[str]:
    """State how well ridge predicts pairs of two unseen tasks: a fixed predictor, to avoid selection bias."""
    own = [
        r
        for r in records
        if r["situation"] == BOTH_NEW and r["target"] == target and r["predictor"] == "ridge"
    ]
    if not own:
        return []
    seen = [r for r in own if r["r_beyond_mean_low"] is not None and r["r_beyond_mean_low"] > 0]
    blind = [str(r["method"]) for r in own if r not in seen]
    if not seen:
        return [
            "For two new tasks, ridge on the metrics predicts no better than the training mean for any method:"
            " every 95 % interval of its correlation includes values below 0."
        ]
    found = ", ".join(
        f"{r['method']} (r = {r['r_beyond_mean']:.2f} after the training mean is subtracted, 95 % from"
        f" {r['r_beyond_mean_low']:.2f} to"
        f" {r['r_beyond_mean_high']:.2f})"
        for r in seen
    )
    rest = f"; for {', '.join(blind)} the interval reaches below 0" if blind else ""
    return [f"For two new tasks, ridge on the metrics is predictive for {found}{rest}."]


def _beyond_sentences(tested: pd.DataFrame, target: str) -> list[str]:
    if tested.empty:
        return []
    own = tested[(tested["target"] == target) & tested["gain"].notna() & tested["p_beyond"].notna()]
    adds = (own["gain"] > 0) & (own["p_beyond"] <= SIGNIFICANT)
    sentences = []
    if (~adds).any():
        sentences.append(
            f"For {', '.join(own.loc[~adds, 'method'])} the metrics add nothing beyond task effects"
            " (permutation test)."
        )
    if adds.any():
        gains = ", ".join(
            f"{method} ({gain:.1%} of the squared error)"
            for method, gain in zip(own.loc[adds, "method"], own.loc[adds, "gain"], strict=True)
        )
        sentences.append(f"The metrics improve predictions beyond task effects for {gains}.")
    return sentences


def _beside_mean(table: pd.DataFrame) -> str:
    error = table["mae"].get("mean", float("nan"))
    return "" if np.isnan(error) else f", against {error:.3f} for always predicting the training mean"


def _plain(method: str) -> str:
    """Return a method's name without the suffix of its scale."""
    return next((method.removesuffix(one) for one in SCALE_SUFFIXES if one and method.endswith(one)), method)
