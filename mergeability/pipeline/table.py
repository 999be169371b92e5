"""Analyse an existing table of pairs; the only stage of this analysis is prediction."""

import logging
import re
from collections.abc import Sequence

import pandas as pd

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.pipeline.budget import refuse_budget
from mergeability.pipeline.predict import PairOutcomes, predict_table
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import TableSuite
from mergeability.prediction.own_accuracies import with_zero_shot_ratio
from mergeability.prediction.pair_table import outcome_methods, summarise_names
from mergeability.prediction.predictors.own_evidence import ZERO_SHOT_RATIO

logger = logging.getLogger(__name__)
# Columns of pairs.csv that are not metrics.
_WRITTEN = re.compile(
    r"task_[ab]|((low_|high_)?(norm_)?acc|kept_gain|alpha|probe_(overlap|confidence))_.+"
    r"|(base|finetuned)_accuracy(_[ab])?|zero_shot_ratio"
)


def analyse_table(suite: TableSuite, request: Request, run: Run) -> Analysis:
    """Predict the outcomes in a table of pairs from its metrics.

    Raises:
        UserError: the table lacks the metrics or the methods asked for, or cannot be predicted from.
    """
    refuse_budget(request, "table")
    file = suite.file()
    pairs, of_ratios = with_zero_shot_ratio(file.frame)
    notes = [*file.notes, *of_ratios]
    names = _metric_columns(suite, request, pairs, of_ratios)
    unused = _unused(file.frame, names)
    for note in (*file.notes, *unused):
        logger.warning("%s", note)
    found = outcome_methods(pairs)
    absent = [method for method in suite.methods or () if method not in found]
    if absent:
        raise UserError(
            f"{suite.table} contains no outcomes of {summarise_names(absent)}, only of"
            f" {summarise_names(found) or 'no method'}. Set suite.methods to methods that have outcomes in the table."
        )
    methods = list(suite.methods or found)
    notes += unused
    predicted = predict_table(PairOutcomes(pairs, names, methods), suite.rows, request, run)
    return Analysis(
        title=f"Mergeability of {suite.name}",
        pairs=predicted.pairs,
        metrics=names,
        methods=methods,
        prediction=predicted.study,
        missing=notes,
        fitted=predicted.fitted,
    )


def _unused(pairs: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Count and name the columns that are neither the pair, nor a metric, nor anything that an analysis writes."""
    unused = [name for name in pairs.columns if name not in metrics and not _WRITTEN.fullmatch(name)]
    return [f"Columns not used ({len(unused)}): {summarise_names(unused)}."] if unused else []


def _metric_columns(
    suite: TableSuite, request: Request, pairs: pd.DataFrame, notes: Sequence[str]
) -> list[str]:
    """Return the columns that are metrics, each once."""
    chosen = suite.metrics or [name for name in request.metrics if name in pairs.columns]
    names = list(dict.fromkeys([*chosen, *(suite.extra_metrics or ())]))
    if not names:
        raise UserError(
            f"{suite.table} contains none of the requested metrics. List its metric columns in suite.metrics=[…]."
        )
    absent = [name for name in names if name not in pairs.columns]
    if ZERO_SHOT_RATIO in absent:
        reason = " ".join(notes) or f"{suite.table} has no columns base_accuracy_a and base_accuracy_b."
        raise UserError(
            f"Expected the accuracies from which {ZERO_SHOT_RATIO} is computed. {reason} Add base_accuracy_a and"
            " base_accuracy_b. Also add finetuned_accuracy_a and finetuned_accuracy_b if the fine-tuned accuracies"
            " cannot be computed from the outcomes."
        )
    if absent:
        raise UserError(
            f"{suite.table} has no column {summarise_names(absent)}. It has: {summarise_names(list(pairs.columns))}."
        )
    return names
