"""Analyse users' models: compute the metrics of every pair, and probe merges on unlabelled images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from torch import Tensor, nn

from mergeability.checks import alike_remarks
from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.data.unlabelled import Drawn, draw_images, remarks
from mergeability.errors import UserError
from mergeability.evaluation.batchnorm import has_batchnorm
from mergeability.evaluation.evaluator import Evaluator
from mergeability.evaluation.merge import Recalibration, own_weights
from mergeability.evaluation.merges import Evaluation, Outcomes
from mergeability.evaluation.outcome_tables import pair_table, set_table
from mergeability.evaluation.probes import probes_on
from mergeability.evaluation.scales import UNLABELLED
from mergeability.merging.method import TUNED
from mergeability.metrics.catalogue import Metric
from mergeability.metrics.functional import of_models
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
    with_functional_metrics,
    without_value,
)
from mergeability.pipeline.own_models import ModelSuite
from mergeability.pipeline.request import FEWEST_UNLABELLED, Request
from mergeability.pipeline.result import Analysis
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors

logger = logging.getLogger(__name__)


def analyse_models(suite: ModelSuite, request: Request, run: Run) -> Analysis:
    """Compute the metrics of every pair, and probe the requested merges.

    Raises:
        UserError: images, heads or models that do not fit together, or something that needs labels.
    """
    refuse_budget(request, "models")
    sets = chosen_sets(request, tuple(suite.members))
    metrics, left_out = _measurable(request.metrics)
    _check_merges(request)
    material = _Material(suite, request, run)
    with run.clock.stage("loading models and images"):
        vectors = suite.load(run.store, request.profile.layout)
        views = material.views
    with run.clock.stage("measuring metrics"):
        profiles = Profiles(vectors, views, run)
        table = measure(profiles, metrics, on_error=request.on_error)
        models = pd.DataFrame(index=pd.Index(vectors.tasks, name="task")).assign(
            **of_models(profiles, metrics)
        )
    with run.clock.stage("merging and probing"):
        outcomes = _probed(vectors, material, sets)
    if request.merging.pairs is not None:
        table = table.loc[list(sets)]
    probes = outcomes.probes
    of_pairs = probes[probes["arity"] == 2] if len(probes) else probes
    if len(of_pairs):
        table = table.join(pair_table(pd.DataFrame(), of_pairs))
    layers, of_layers = layer_cosines(profiles, table.reset_index())
    return Analysis(
        title=f"Mergeability of {suite.name}",
        pairs=table.reset_index(),
        metrics=list(metrics),
        models=models,
        missing=[
            *material.remarks,
            *without_value(table),
            *map(str, vectors.left_out),
            *left_out,
            *outcomes.notes,
            *of_layers,
        ],
        run=recorded(vectors, request),
        sets=_larger_sets(probes, profiles, metrics),
        curves=outcomes.curves,
        merged=outcomes.methods if sets and request.merging.probe is not None else [],
        layers=layers,
    )


@dataclass(frozen=True)
class _Material:
    """The images, heads and encoder of a suite, each loaded on first use."""

    suite: ModelSuite
    request: Request
    run: Run

    @property
    def asked(self) -> int:
        """The maximum number of unlabelled images per task."""
        profile, merging = self.request.profile, self.request.merging
        return max(profile.unlabelled, profile.samples, merging.probe or 0)

    @cached_property
    def drawn(self) -> dict[str, Drawn]:
        """Hold unlabelled images of each task; smaller samples are the first images of larger samples."""
        seed, resize = self.request.profile.seed, self.suite.model.resize
        found = {
            name: draw_images(one.images, self.asked, name, seed, resize)
            for name, one in self.suite.members.items()
        }
        few = [
            f"{name} ({len(one.images)})"
            for name, one in found.items()
            if len(one.images) < FEWEST_UNLABELLED
        ]
        if few:
            raise UserError(
                f"Expected at least {FEWEST_UNLABELLED} readable images of each task, got fewer for"
                f" {', '.join(few)}. Fewer images give unreliable estimates."
            )
        for name, one in found.items():
            for sentence in remarks(one, self.asked, name):
                logger.warning("%s", sentence)
        return found

    @property
    def remarks(self) -> list[str]:
        return [
            *alike_remarks(self.suite.members, "models"),
            *(sentence for name, one in self.drawn.items() for sentence in remarks(one, self.asked, name)),
        ]

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        return self.suite.heads()

    @cached_property
    def encoder(self) -> nn.Module:
        return self.suite.model.encoder_only()

    def inputs(self, count: int) -> dict[str, Inputs]:
        model = self.suite.model
        return {
            name: Inputs({"images": model.preprocess(one.images[:count])}) for name, one in self.drawn.items()
        }

    @cached_property
    def views(self) -> Views:
        profile = self.request.profile
        return Views(
            encoder=self.encoder,
            heads=self.heads,
            calibration=self.inputs(profile.samples),
            pool=profile.pool,
            layer=profile.layer,
            configuration=self.suite.model.configuration,
            unlabelled=self.inputs(profile.unlabelled),
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        model, device = self.suite.model, self.run.device
        return Evaluator(
            self.encoder,
            model.preprocess,
            {"model": model.configuration, "mean": list(model.mean), "std": list(model.std)},
            self.heads,
            {},
            self.run.store,
            device=device,
            precision="bfloat16" if device.startswith("cuda") else "float32",
        )


def _probed(vectors: TaskVectors, material: _Material, sets: Sequence[tuple[str, ...]]) -> Outcomes:
    """Merge every set by every method, and compare the predictions of merges with those of the models."""
    request = material.request
    if not request.merges or not sets:
        return Outcomes(pd.DataFrame(), pd.DataFrame())
    merging = request.merging
    tunes = merging.scales.tunes(request.merges, UNLABELLED)
    inputs = material.inputs(merging.probe or request.profile.unlabelled)
    probing, tuning = probes_on(
        material.evaluator,
        inputs,
        lambda task: own_weights(vectors, task),
        looks=merging.probe is not None,
        tunes=tunes,
    )
    renews = has_batchnorm(material.encoder)
    return Evaluation(
        vectors,
        material.evaluator,
        None,
        merging.scales,
        recalibration=Recalibration(material.evaluator, material.views) if renews else None,
        probe=probing,
        unlabelled=tuning,
        save=merge_writer(vectors, request, sets, material.suite.model),
    ).sets(request.merges, sets, material.run)


def _measurable(metrics: Mapping[str, Metric]) -> tuple[dict[str, Metric], list[str]]:
    """For `metric=all`, drop metrics that need labels and list them.

    Raises:
        UserError: a metric chosen by name needs labels.
    """
    labelled = [name for name, one in metrics.items() if traits_of(one).category == "gradient"]
    if not labelled:
        return dict(metrics), []
    if not asks_for_all(metrics):
        raise UserError(
            f"{', '.join(labelled)} require labelled images, but suite=models provides none. Choose other"
            " metrics, such as metric=[weights,functional]."
        )
    kept = {name: one for name, one in metrics.items() if name not in labelled}
    return kept, [f"Left out, since they need labels: {', '.join(labelled)}."]


def _check_merges(request: Request) -> None:
    refuse_methods_with_data(request, "models", "labelled calibration images", "Without them")
    merging = request.merging
    if merging.scales.tunes(request.merges, TUNED):
        raise UserError(
            "alpha=tuned requires labelled validation images, but suite=models provides none. Set"
            " alpha=unlabelled, or set alpha to a number."
        )
    if request.merges and merging.probe is None and not merging.keeps:
        raise UserError(
            "Merges would be neither probed nor saved. Set probe=64 or save=true, or remove merge=."
        )


def _larger_sets(probes: pd.DataFrame, profiles: Profiles, metrics: Mapping[str, Metric]) -> pd.DataFrame:
    """Arrange the probes of sets of more than two models, with the functional metrics of each set."""
    larger = probes[probes["arity"] > 2] if len(probes) else probes
    return with_functional_metrics(set_table(pd.DataFrame(), larger), larger, profiles, metrics)
