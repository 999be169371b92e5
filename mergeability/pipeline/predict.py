"""The last stage of an analysis: predictors are studied, one is fitted for later runs, and an earlier one scores."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from mergeability.metrics.catalogue import CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.traits import documented_range
from mergeability.pipeline.request import Request
from mergeability.prediction import PredictionResult, Scorer, StudySettings, study_predictions
from mergeability.prediction.pair_table import FINETUNED, PairTable, with_finetuned_accuracy
from mergeability.prediction.scorer import transfer_table
from mergeability.prediction.study import Known
from mergeability.prediction.study_cache import from_record, study_key, to_record
from mergeability.progress import Progress
from mergeability.store import Store

logger = logging.getLogger(__name__)
FEWEST_FOR_PREDICTION = 4


@dataclass
class Clock:
    """How long each stage took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        logger.info("%s …", name)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)


def with_own_accuracies(pairs: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Add the mean of the two models' own accuracies, fine-tuned and base: what is known before any merge."""
    own = {
        column: (
            pairs["task_a"].map(models[column]).to_numpy() + pairs["task_b"].map(models[column]).to_numpy()
        )
        / 2
        for column in (FINETUNED, "base_accuracy")
    }
    return pairs.assign(**own)


def predict_pairs(
    pairs: pd.DataFrame,
    merged_sets: pd.DataFrame,
    request: Request,
    methods: list[str],
    sets: Sequence[tuple[str, ...]],
    store: Store,
    progress: Progress,
    clock: Clock,
) -> tuple[PredictionResult | None, Scorer | None, list[str]]:
    """Predict the outcomes of pairs; or say in a sentence why not."""
    if not request.merges or not request.predictors:
        return None, None, []
    if not methods:
        return (
            None,
            None,
            ["Nothing was predicted: predictors are fitted on pairs, and no pair was merged."],
        )
    tasks = {task for one in sets if len(one) == 2 for task in one}
    if len(tasks) < FEWEST_FOR_PREDICTION:
        sentence = f"the chosen pairs have {len(tasks)} tasks, fewer than {FEWEST_FOR_PREDICTION}"
        return None, None, [f"Nothing was predicted: {sentence}."]
    metrics = list(request.metrics)
    found = _predict(
        pairs, merged_sets, metrics, methods, request, request.prediction, store, progress, clock
    )
    return *found, []


def predict_table(
    pairs: pd.DataFrame,
    metrics: list[str],
    methods: list[str],
    rows: str,
    request: Request,
    store: Store,
    progress: Progress,
    clock: Clock,
) -> tuple[pd.DataFrame, PredictionResult | None, Scorer | None]:
    """Predict the outcomes of a ready table; return it with the models' own accuracies where it implies them."""
    if not request.predictors or not methods:
        return pairs, None, None
    # Checks the tasks of the pairs first, which the accuracies are read from.
    PairTable.validate(pairs, metrics, [])
    pairs = with_finetuned_accuracy(pairs)
    settings = replace(request.prediction, rows=rows)
    found = _predict(pairs, pd.DataFrame(), metrics, methods, request, settings, store, progress, clock)
    return pairs, *found


def _predict(
    pairs: pd.DataFrame,
    merged_sets: pd.DataFrame,
    metrics: list[str],
    methods: list[str],
    request: Request,
    settings: StudySettings,
    store: Store,
    progress: Progress,
    clock: Clock,
) -> tuple[PredictionResult, Scorer]:
    """Study the predictors, once per table and choice of options, and fit the one that scores other pairs."""
    known = Known(
        {name: documented_range(metric) for name, metric in request.metrics.items()}, CATEGORIES, merged_sets
    )
    with clock.stage("predicting"):
        record = store.record(
            "study",
            study_key(pairs, metrics, request.predictors, methods, settings, known),
            lambda: to_record(
                study_predictions(pairs, metrics, request.predictors, methods, settings, known, progress)
            ),
        )
        scorer = Scorer.fit(pairs, metrics, methods, [list(WEIGHT_SPACE)])
    return from_record(record), scorer


def scored(scorer: Scorer, pairs: pd.DataFrame, request: Request) -> dict[str, Any]:
    """Score every pair by the predictor that was asked for, and compare with outcomes where there are some."""
    scores = scorer.score(pairs, request.margin)
    return {"scorer": scorer, "scores": scores, "transfer": transfer_table(scorer, pairs, scores)}
