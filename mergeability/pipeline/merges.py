"""What every suite shares about its merges: which are made, where they are kept, what is recorded of them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mergeability.errors import UserError
from mergeability.evaluation.merge import describe
from mergeability.evaluation.merges import Save
from mergeability.models.clip import ClipModel
from mergeability.pipeline.merge_writer import MergeWriter
from mergeability.pipeline.request import Request
from mergeability.task_vectors.vectors import TaskVectors


def chosen_sets(request: Request, tasks: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Choose the sets of models to merge, and refuse at once what a method cannot merge.

    Raises:
        UserError: a method merges another number of models.
    """
    sets = request.merging.chosen_sets.choose(tasks)
    for name, method in request.merges.items():
        count = method.models
        other = next((len(one) for one in sets if count is not None and len(one) != count), None)
        if other is not None:
            raise UserError(
                f"{name} merges exactly {count} models, and arity asks for {other}. "
                f"Leave {name} out of merge=, or set arity={count}."
            )
    return sets if request.merges or request.merging.pairs is not None else []


def merge_writer(
    vectors: TaskVectors, request: Request, sets: Sequence[tuple[str, ...]], model: ClipModel | None
) -> Save | None:
    """Return what writes each merge into the run's folder; None where merges are not kept."""
    if not request.merging.keeps or not request.merges or request.folder is None:
        return None
    scales = request.merging.scales
    columns = [column for name, one in request.merges.items() for column in scales.columns(name, one)]
    return MergeWriter(
        request.folder / "merged", vectors, request.merging.export, model, expected=len(columns) * len(sets)
    )


def recorded(vectors: TaskVectors, request: Request) -> dict[str, Any]:
    """Return what `run.json` records of the models and the merge methods."""
    return {
        "base_sha256": vectors.base_hash,
        "checkpoint_sha256": vectors.hashes,
        "merges": {name: describe(method) for name, method in request.merges.items()},
    }


def without_value(table: pd.DataFrame) -> list[str]:
    """Return the sentences on what has no value in a table of metrics, and why."""
    return [*table.attrs.get("failures", ()), *table.attrs.get("undefined", ())]
