"""Define the steps of merging that all suites share: choosing sets, checking methods, writing and recording merges."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch

from mergeability.errors import UserError
from mergeability.evaluation.merge import describe
from mergeability.evaluation.merges import Save
from mergeability.members import data_free
from mergeability.metrics.catalogue import CATALOGUE, Metric
from mergeability.metrics.functional import functional_names, set_values
from mergeability.models.clip import ClipModel
from mergeability.pipeline.merge_writer import MergeWriter, keep_only
from mergeability.pipeline.request import Request
from mergeability.pipeline.saving import merge_folder_name
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


def chosen_sets(request: Request, tasks: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Choose the sets of models to merge, and check that every method can merge them.

    Raises:
        UserError: a method requires another number of models.
    """
    # Without merges, list all pairs, however many there are.
    many = request.merging.evaluate is not None or not request.merges
    sets = replace(request.merging.chosen_sets, many_pairs=many).choose(tasks)
    for name, method in request.merges.items():
        count = method.models
        other = next((len(one) for one in sets if count is not None and len(one) != count), None)
        if other is not None:
            raise UserError(
                f"{name} merges exactly {count} models, but arity is {other}. Remove {name} from merge=, or"
                f" set arity={count}."
            )
    return sets if request.merges or request.merging.pairs is not None else []


def refuse_methods_with_data(request: Request, suite: str, needed: str, without: str) -> None:
    """Check that a suite provides the data that the merge methods require.

    Args:
        request: the request.
        suite: name of the kind of suite.
        needed: description of the required data.
        without: description of its absence.

    Raises:
        UserError: a method needs data.
    """
    demanding = [name for name, method in request.merges.items() if method.needs_data]
    if demanding:
        raise UserError(
            f"{', '.join(demanding)} requires {needed}, but suite={suite} provides none. {without}, only"
            f" these methods can be used: {', '.join(data_free())}."
        )


def asks_for_all(metrics: Mapping[str, Metric]) -> bool:
    """Return whether the request contains all metrics of `metric=all`."""
    return all(name in metrics for name, entry in CATALOGUE.items() if not entry.traits.per_pair)


def with_functional_metrics(
    table: pd.DataFrame, rows: pd.DataFrame, profiles: Profiles, metrics: Iterable[str]
) -> pd.DataFrame:
    """Add the functional metrics of each set to the table of sets.

    Args:
        table: one row per set, with its name in `tasks`.
        rows: one row per set and task, with both names.
        profiles: the models.
        metrics: names of the metrics that are measured.
    """
    names = functional_names(metrics)
    if not names or table.empty:
        return table
    members = {str(tasks): list(dict.fromkeys(own["task"])) for tasks, own in rows.groupby("tasks")}
    values = [set_values(profiles, names, members[tasks]) for tasks in table["tasks"]]
    return pd.concat([table, pd.DataFrame(values, index=table.index)], axis=1)


def merge_writer(
    vectors: TaskVectors, request: Request, sets: Sequence[tuple[str, ...]], model: ClipModel | None
) -> Save | None:
    """Return an object that writes merges into the run folder; None if merges are not saved."""
    if not request.merging.keeps or not request.merges or request.folder is None:
        return None
    scales = request.merging.scales
    columns = [column for name, one in request.merges.items() for column in scales.columns(name, one)]
    folder, dtype = request.folder / "merged", request.merging.dtype
    keep_only(folder, {(column, merge_folder_name(members)) for column in columns for members in sets})
    return MergeWriter(
        folder,
        vectors,
        request.merging.export,
        None if dtype is None else getattr(torch, dtype),
        model,
        expected=len(columns) * len(sets),
    )


def recorded(vectors: TaskVectors, request: Request) -> dict[str, Any]:
    """Return a record of the models and the merge methods for `run.json`."""
    return {
        "base_sha256": vectors.base_hash,
        "checkpoint_sha256": vectors.hashes,
        "merges": {name: describe(method) for name, method in request.merges.items()},
        **({"left_out": [asdict(one) for one in vectors.left_out]} if vectors.left_out else {}),
    }


def without_value(table: pd.DataFrame) -> list[str]:
    """Return messages about missing values in a table of metrics, with reasons."""
    return [*table.attrs.get("failures", ()), *table.attrs.get("undefined", ())]
