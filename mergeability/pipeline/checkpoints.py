"""Analyse checkpoints without data: compute metrics of the weights, and write merges."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mergeability.checks import alike_remarks
from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.evaluation.merge import Merge, given_alpha
from mergeability.evaluation.scales import UNLABELLED
from mergeability.merging.method import TUNED
from mergeability.metrics.catalogue import Metric
from mergeability.metrics.measure import measure
from mergeability.metrics.traits import traits_of
from mergeability.pipeline.budget import refuse_budget
from mergeability.pipeline.layers import layer_cosines
from mergeability.pipeline.merges import (
    asks_for_all,
    chosen_sets,
    merge_writer,
    recorded,
    refuse_methods_with_data,
    without_value,
)
from mergeability.pipeline.request import Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.suites import CheckpointSuite
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


def analyse_checkpoints(suite: CheckpointSuite, request: Request, run: Run) -> Analysis:
    """Compute the metrics of every pair, and write the requested merges.

    Raises:
        UserError: there are fewer than two models, a merge method needs data, or merges would not be saved.
    """
    if len(suite.models) < 2:
        raise UserError(f"Expected at least two models to compare, got {len(suite.models)}.")
    refuse_budget(request, "checkpoints")
    sets = chosen_sets(request, tuple(map(str, suite.models)))
    if request.merges:
        _check_merges(request)
    vectors = suite.load(run.store, request.profile.layout)
    found = compared(vectors, request, run)
    if request.merges:
        with run.clock.stage("merging"):
            _merge(vectors, request, sets, run)
    return found


def compared(vectors: TaskVectors, request: Request, run: Run) -> Analysis:
    """Compute the metrics of every pair of opened models.

    Args:
        vectors: two or more models.
        request: the request with the suite and the metrics.
        run: store, progress and memory budget.
    """
    metrics, without_data = _measurable(request.metrics)
    with run.clock.stage("measuring metrics"):
        profiles = Profiles(vectors, None, run)
        table = measure(profiles, metrics, on_error=request.on_error)
        layers, of_layers = layer_cosines(profiles, table.reset_index())
    return Analysis(
        title=f"Mergeability of {request.suite.name}",
        pairs=table.reset_index(),
        metrics=list(metrics),
        missing=[
            *without_value(table),
            *map(str, vectors.left_out),
            *vectors.notes,
            *without_data,
            *alike_remarks(vectors.tasks, "models"),
            *of_layers,
            "No merge was evaluated and nothing predicted: that takes images of the tasks.",
        ],
        run=recorded(vectors, request),
        layers=layers,
    )


def _measurable(metrics: Mapping[str, Metric]) -> tuple[dict[str, Metric], list[str]]:
    """For `metric=all`, drop metrics that need data and list them; metrics selected by name are kept."""
    if not asks_for_all(metrics):
        return dict(metrics), []
    left_out = [name for name, metric in metrics.items() if traits_of(metric).needs_data]
    kept = {name: metric for name, metric in metrics.items() if name not in left_out}
    return kept, [f"Left out, since they need images: {', '.join(left_out)}."]


def _check_merges(request: Request) -> None:
    refuse_methods_with_data(request, "checkpoints", "calibration images", "Without data")
    if not request.merging.keeps:
        raise UserError(
            "suite=checkpoints provides no images for the evaluation of merges. Set save=true, or remove"
            " merge=."
        )
    if any(request.merging.scales.tunes(request.merges, by) for by in (TUNED, UNLABELLED)):
        raise UserError(
            "Tuning alpha requires validation images, but suite=checkpoints provides none. Set alpha to a"
            " number."
        )


def _merge(vectors: TaskVectors, request: Request, sets: Sequence[tuple[str, ...]], run: Run) -> None:
    write = merge_writer(vectors, request, sets, None)
    assert write is not None

    def merge(item: tuple[tuple[str, ...], str]) -> None:
        chosen, name = item
        one = Merge(vectors.select(chosen), request.merges[name])
        (alpha,) = request.merging.scales.columns(name, one.method).values()
        write(one, name, *given_alpha(alpha, one), pd.DataFrame())

    run.map(merge, [(chosen, name) for chosen in sets for name in request.merges], description="merging")
