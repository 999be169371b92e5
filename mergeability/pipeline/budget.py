"""Choose which pairs to evaluate within a budget, and predict the other pairs."""

import logging
from collections.abc import Sequence

import pandas as pd

from mergeability.errors import UserError
from mergeability.pipeline.request import Request
from mergeability.prediction.pair_choice import choose_pairs
from mergeability.prediction.pair_table import TARGETS, summarise_names
from mergeability.prediction.unevaluated import Unevaluated, predict_unevaluated

logger = logging.getLogger(__name__)


def check_budget(request: Request) -> None:
    """Check that a merge method is given if a budget of evaluations is set.

    Raises:
        UserError: `evaluate` is set, but there is no merge method.
    """
    if request.merging.evaluate is not None and not request.merges:
        raise UserError(
            f"evaluate={request.merging.evaluate} chooses the pairs to merge, but there is no merge method."
            " Set merge=…, or remove evaluate=."
        )


def refuse_budget(request: Request, suite: str) -> None:
    """Check that a budget of evaluations is only set for suites that evaluate merges with labels.

    Raises:
        UserError: `evaluate` is set.
    """
    if request.merging.evaluate is not None:
        raise UserError(
            f"evaluate={request.merging.evaluate} limits the pairs whose merges are evaluated, but suite={suite}"
            " does not evaluate merges. Remove evaluate=. To limit the number of merges, set pairs=… or sets=… instead."
        )


def evaluated_sets(
    sets: Sequence[tuple[str, ...]], table: pd.DataFrame, request: Request
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Choose the pairs to evaluate, and log the number of remaining pairs.

    Args:
        sets: the pairs to choose from.
        table: metrics of all pairs, indexed by (task_a, task_b).
        request: contains the budget; without one, all sets are evaluated.
    """
    budget = request.merging.evaluate
    if budget is None:
        return list(sets), []
    if budget > len(sets):
        note = f"evaluate={budget} is more than the {len(sets)} pairs that there are: all were evaluated."
        logger.info("%s", note)
        return list(sets), [note]
    pairs = table.loc[list(sets)].reset_index()
    metrics = [name for name in request.metrics if name in pairs.columns]
    rows = choose_pairs(pairs, metrics, budget, request.merging.seed)
    # Sorted by table row, like all pairs.
    chosen = [sets[row] for row in sorted(rows.tolist())]
    covered = {task for pair in chosen for task in pair}
    alone = [task for task in dict.fromkeys(task for pair in sets for task in pair) if task not in covered]
    logger.info("Evaluating %d of %d pairs; the others are predicted.", len(chosen), len(sets))
    if not alone:
        return chosen, []
    return chosen, [
        f"{len(alone)} models are in no evaluated pair, so that nothing is known of their merges: "
        f"{summarise_names(alone)}. A larger evaluate= covers them."
    ]


def with_outcomes(pairs: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return the pairs that have an outcome of at least one method."""
    outcomes = [f"{t}_{m}" for t in TARGETS for m in methods if f"{t}_{m}" in pairs.columns]
    return pairs[pairs[outcomes].notna().any(axis=1)].reset_index(drop=True)


def predicted_others(pairs: pd.DataFrame, methods: Sequence[str], request: Request) -> Unevaluated:
    """Predict the pairs that the budget left unevaluated; predict nothing if there is no budget."""
    if request.merging.evaluate is None:
        return Unevaluated()
    metrics = [name for name in request.metrics if name in pairs.columns]
    return predict_unevaluated(pairs, metrics, methods, request.merging.seed)
