"""Run the stages of an analysis: profile → measure → merge → evaluate → predict.

The input is one of the kinds of `suites`: tasks (all stages), checkpoints without data (weight-space
metrics), or an existing table of pairs (prediction).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.pipeline.checkpoints import analyse_checkpoints
from mergeability.pipeline.own_models import ModelSuite
from mergeability.pipeline.predict import scored
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import CheckpointSuite, TableSuite, TaskSuite
from mergeability.pipeline.table import analyse_table
from mergeability.pipeline.tasks import analyse_tasks
from mergeability.pipeline.unlabelled import analyse_models
from mergeability.prediction import Scorer
from mergeability.progress import Progress
from mergeability.provenance import provenance
from mergeability.store import Store


def analyse(request: Request, progress: Progress, facts: Mapping[str, Any] | None = None) -> Analysis:
    """Run an analysis; stages for which the suite provides no data are left out.

    Args:
        request: the models, metrics, merges, predictors and options.
        progress: wraps long loops: (items, description, total) → the items.
        facts: more entries for `run.json`, such as the configuration.

    Returns:
        The results, from which a report is written.

    Raises:
        UserError: an input is missing or invalid; the message states what was expected, what was found, and the remedy.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics.catalogue import WEIGHT_SPACE
        >>> from mergeability.pipeline import Request, analyse
        >>> from mergeability.pipeline.suites import CheckpointSuite
        >>> from mergeability.progress import no_progress
        >>> models = tiny_task_vectors()
        >>> files = {task: str(models.model(task).path) for task in models.tasks}
        >>> suite = CheckpointSuite("three models", str(models.base_checkpoint.path), files)
        >>> request = Request(suite, {"cosine": WEIGHT_SPACE["task_vector_cosine_similarity"]}, device="cpu")
        >>> analyse(request, no_progress).pairs.round(2)
          task_a task_b  cosine
        0   cars    dtd    0.85
        1   cars   svhn   -0.14
        2    dtd   svhn   -0.40
    """
    merging = request.merging
    if merging.dtype is not None and not merging.keeps:
        raise UserError(f"dtype={merging.dtype} only affects saved merges. Add save=true, or remove dtype=.")
    # Check the device and the fitted predictor first, because errors would otherwise appear after minutes.
    run = Run(
        Store(request.store),
        progress,
        request.device,
        request.profile.memory_budget,
        request.folder,
        workers=request.workers,
    )
    scorer = None if request.fitted is None else Scorer.load(request.fitted)
    match request.suite:
        case TaskSuite() as suite:
            found = analyse_tasks(suite, request, run)
        case ModelSuite() as suite:
            found = analyse_models(suite, request, run)
        case CheckpointSuite() as suite:
            found = analyse_checkpoints(suite, request, run)
        case TableSuite() as suite:
            found = analyse_table(suite, request, run)
    if scorer is not None:
        by_scorer = scored(scorer, found.pairs, request)
        found = replace(found, scorer=scorer, scores=by_scorer.scores, transfer=by_scorer.transfer)
    record = {
        **(facts or {}),
        **found.run,
        "seconds": run.clock.seconds,
        "computed": dict(run.store.computed),
        "found": dict(run.store.found),
        **provenance(),
    }
    return replace(found, run=record)
