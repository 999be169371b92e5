"""Run the last stage of an analysis: compare predictors, fit a predictor for later runs, and score pairs."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from mergeability.context import Run
from mergeability.metrics.catalogue import CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.functional import functional_names
from mergeability.metrics.traits import documented_range
from mergeability.pipeline.request import Request
from mergeability.prediction import PairTable, PredictionResult, Scorer, StudySettings, study_predictions
from mergeability.prediction.evidence import evidence_columns, with_own_evidence
from mergeability.prediction.own_accuracies import with_finetuned_accuracy
from mergeability.prediction.pair_table import FINETUNED
from mergeability.prediction.predictors.own_evidence import ZERO_SHOT_RATIO, Functional
from mergeability.prediction.scorer import fitted_target, transfer_table
from mergeability.prediction.study import Known
from mergeability.prediction.study_cache import from_record, study_key, to_record

logger = logging.getLogger(__name__)
FEWEST_FOR_PREDICTION = 4


@dataclass(frozen=True)
class PairOutcomes:
    """Hold the table of metrics and outcomes that prediction uses.

    Attributes:
        pairs: one row per pair: metrics and outcomes.
        metrics: names of its metric columns.
        methods: merge methods for which the table contains outcomes.
        merged_sets: merges of more than two models, one row per set.
    """

    pairs: pd.DataFrame
    metrics: Sequence[str]
    methods: Sequence[str]
    merged_sets: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Predicted:
    """Hold the results of the prediction stage.

    Attributes:
        pairs: the table predicted from, with the models' own accuracies where they are known.
        study: scores of all predictors, with tables about them; None if nothing was predicted.
        fitted: the predictor for later runs.
        notes: sentences about why nothing was predicted.
    """

    pairs: pd.DataFrame
    study: PredictionResult | None = None
    fitted: Scorer | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """Hold the scores of all pairs, which were computed by a predictor from an earlier run.

    Attributes:
        scorer: the predictor.
        scores: one row per pair.
        transfer: comparison with outcomes, one row per method; no rows if there are no outcomes.
    """

    scorer: Scorer
    scores: pd.DataFrame
    transfer: pd.DataFrame


def with_own_accuracies(pairs: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Add columns of fine-tuned accuracy, base accuracy and their ratio, each averaged over the pair's two tasks.

    The ratio is base over fine-tuned accuracy (NaN if a fine-tuned accuracy is 0).
    """
    own = {
        column: (
            pairs["task_a"].map(models[column]).to_numpy() + pairs["task_b"].map(models[column]).to_numpy()
        )
        / 2
        for column in (FINETUNED, "base_accuracy")
    }
    tuned = models[FINETUNED].where(models[FINETUNED] > 0)
    ratios = models["base_accuracy"] / tuned
    of_pairs = (pairs["task_a"].map(ratios).to_numpy() + pairs["task_b"].map(ratios).to_numpy()) / 2
    return pairs.assign(**own, **{ZERO_SHOT_RATIO: of_pairs})


def predict_pairs(
    outcomes: PairOutcomes, sets: Sequence[tuple[str, ...]], request: Request, run: Run
) -> Predicted:
    """Predict the outcomes of the merged pairs; if there are too few pairs, return the reason as a note."""
    if not request.merges or not request.predictors:
        return Predicted(outcomes.pairs)
    if not outcomes.methods:
        note = "Nothing was predicted: predictors are fitted on pairs, and no pair was merged."
        return Predicted(outcomes.pairs, notes=(note,))
    tasks = {task for one in sets for task in one if len(one) == 2}
    if len(tasks) < FEWEST_FOR_PREDICTION:
        sentence = f"the chosen pairs have {len(tasks)} tasks, fewer than {FEWEST_FOR_PREDICTION}"
        return Predicted(outcomes.pairs, notes=(f"Nothing was predicted: {sentence}.",))
    return _predict(outcomes, request, request.prediction, run)


def predict_table(outcomes: PairOutcomes, rows: str, request: Request, run: Run) -> Predicted:
    """Predict the outcomes in an existing table; use the models' single-task accuracies if they are known.

    Args:
        outcomes: the table.
        rows: `per_method`, or `complete`: only pairs with an outcome for every method.
        request: the predictors and their metrics.
        run: the surroundings.

    Raises:
        UserError: for the reasons given in `PairTable.validate`.
    """
    if not request.predictors or not outcomes.methods:
        return Predicted(outcomes.pairs)
    outcomes = replace(outcomes, pairs=with_finetuned_accuracy(outcomes.pairs))
    settings = replace(request.prediction, rows=rows)
    return _predict(outcomes, request, settings, run)


def _predict(outcomes: PairOutcomes, request: Request, settings: StudySettings, run: Run) -> Predicted:
    """Compare the predictors, with a cache per table and options, and fit the predictor for other pairs."""
    pairs, metrics, methods = outcomes.pairs, list(outcomes.metrics), list(outcomes.methods)
    ranges = {name: documented_range(metric) for name, metric in request.metrics.items()}
    functional = functional_names(metrics)
    # Categories are part of a study's store key, so add a category only if it was measured.
    categories = {**CATEGORIES, **({"functional": tuple(functional)} if functional else {})}
    known = Known(ranges, categories, outcomes.merged_sets)
    with run.clock.stage("predicting"):
        targets = list(dict.fromkeys([*settings.targets, fitted_target(list(pairs.columns), methods)]))
        own, _ = with_own_evidence(request.predictors)
        also = [FINETUNED, *evidence_columns(own.values(), targets, methods)]
        table = PairTable.of(pairs, metrics, methods, targets, ranges, also=also)
        record = run.store.record(
            "study",
            study_key(pairs, metrics, request.predictors, methods, settings, known),
            lambda: to_record(
                study_predictions(table, metrics, request.predictors, methods, settings, known, run.progress)
            ),
        )
        fitted = Scorer.fit(table, metrics, methods, tiers_of_evidence(metrics, ranges, targets[-1]))
    return Predicted(pairs, from_record(record), fitted)


def tiers_of_evidence(
    metrics: Sequence[str], ranges: Mapping[str, tuple[float, float]], target: str
) -> dict[str, list[str]]:
    """Return the sets of columns on which predictors for later runs are fitted, except the set of all metrics.

    Metrics with a bounded range (cosines, ratios, normalised ranks, overlaps) do not depend on model size, so a fit on
    one architecture applies to another; weight-space metrics also need no data.
    """
    functional = list(Functional().columns(target, "")[0])
    free = [name for name in metrics if all(map(math.isfinite, ranges.get(name, (-math.inf, math.inf))))]
    free = [name for name in free if name not in functional_names(free)]
    tiers = {
        "functional and size-free metrics": [*functional, *free],
        "functional": functional,
        "size-free metrics": free,
        "size-free weight metrics": [name for name in free if name in WEIGHT_SPACE],
        "weight metrics": [name for name in metrics if name in WEIGHT_SPACE],
    }
    if not set(functional) <= set(metrics):
        tiers = {name: columns for name, columns in tiers.items() if not name.startswith("functional")}
    return tiers


def scored(scorer: Scorer, pairs: pd.DataFrame, request: Request) -> Scored:
    """Score every pair with a fitted predictor, and compare the scores with outcomes if any were measured."""
    scores = scorer.score(pairs, request.margin)
    return Scored(scorer, scores, transfer_table(scorer, pairs, scores))
