"""Compute functional evidence: what unmerged models, and their averaged features, predict for unlabelled inputs.

Every model runs once over every task's inputs, and its features are stored: (T + 1)·T entries of n×d float32. The rest
is arithmetic on these features. Labels are not used.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mergeability.errors import UserError
from mergeability.models.features import features
from mergeability.profiles.answers import (
    BY_CHANCE,
    MEASURES,
    chance_agreement,
    normalised,
    probabilities,
)
from mergeability.profiles.encoders import evaluation_mode
from mergeability.profiles.subject import Subject
from mergeability.profiles.views import Views
from mergeability.weights.encoder_state import encoder_state

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1
# Below this multiple of the chance agreement, the images may belong to another task.
_NEAR_CHANCE = 1.5

# Model (None: the base) and task → the model's normalised features of the task's inputs.
ReadFeatures = Callable[[str | None, str], Float64[np.ndarray, "n d"]]


@dataclass(frozen=True)
class Features:
    """Compute and store the features of each task's unlabelled inputs, for the base and for every fine-tuned model."""

    kind: ClassVar[str] = "features"
    description: ClassVar[str] = "features of unlabelled inputs"

    def key(self, subject: Subject, model: str | None, task: str) -> dict[str, Any]:
        """Return all inputs that determine a model's features; task None stands for the base model."""
        views = subject.required_views("functional")
        hashes = subject.task_vectors.hashes
        return {
            "model": subject.task_vectors.base_hash if model is None else hashes[model],
            "encoder": views.architecture,
            "samples": views.unlabelled[task].fingerprint,
            **subject.settings(_VERSION),
        }

    def combine(self, subject: Subject) -> ReadFeatures:
        """Compute the missing features, one model at a time, and return a function that reads features."""
        views = subject.required_views("functional")
        tasks = answerable(views, subject.tasks)

        def ensure(model: str | None) -> None:
            passes = _Passes(subject, model)
            for task in tasks:
                subject.store.ensure(
                    self.kind, self.key(subject, model, task), lambda task=task: passes.features(task)
                )

        subject.run.map(ensure, [None, *subject.tasks], description=self.description)

        def read(model: str | None, task: str) -> Float64[np.ndarray, "n d"]:
            rows = subject.store.read(self.kind, self.key(subject, model, task))["features"].numpy()
            return normalised(rows)

        return read


class _Passes:
    """One model's forward passes; its weights are read on the first pass."""

    def __init__(self, subject: Subject, model: str | None) -> None:
        self._subject, self._model = subject, model
        self._state: dict[str, Tensor] | None = None

    @torch.no_grad()
    def features(self, task: str) -> dict[str, Tensor]:
        """Compute the features of a task's inputs, an n×d array in float32."""
        subject = self._subject
        if self._state is None:
            self._state = _weights(subject, self._model)
        inputs = subject.required_views("functional").unlabelled[task]
        size = subject.batch_size(self._state, inputs)
        with evaluation_mode(subject.encoder):
            rows = [
                features(subject.encoder, batch.to(subject.run.device), self._state).float().cpu()
                for batch in inputs.batches(size)
            ]
        found = torch.cat(rows)
        if not torch.isfinite(found).all():
            owner = "base model" if self._model is None else f"model of '{self._model}'"
            raise UserError(
                f"For the inputs of '{task}', the {owner} computes features that are not finite, because the weights of"
                " this model are too large. Check the weights, or leave the model out."
            )
        return {"features": found}


def _weights(subject: Subject, model: str | None) -> dict[str, Tensor]:
    if model is not None:
        return subject.state(model)
    views = subject.required_views("functional")
    tensors = subject.task_vectors.base_checkpoint.state_dict()
    state = encoder_state(views.encoder, tensors, "the base model")
    return {name: tensor.to(subject.run.device) for name, tensor in state.items()}


def answerable(views: Views, tasks: Iterable[str]) -> tuple[str, ...]:
    """Return the tasks that have both unlabelled inputs and a head."""
    return tuple(task for task in tasks if task in views.unlabelled and task in views.heads)


@dataclass(frozen=True)
class FunctionalValues:
    """Hold v(m, t): how well the predictions of m on the inputs of task t match those of the task's own model.

    Attributes:
        tasks: the order of rows and columns.
        base: measure → v(base, t) of each task t.
        partner: measure → v(m, t), model m in row m and task t in column t.
        ensemble: measure → v of the mean of the features of models m and t.
        images: number of inputs of each task; 0 if a task has no inputs or no head.
        chance: the chance agreement of the base with each task's model.

    Values of a task without inputs or head are NaN.
    """

    tasks: tuple[str, ...]
    base: dict[str, Float64[np.ndarray, "T"]]
    partner: dict[str, Float64[np.ndarray, "T T"]]
    ensemble: dict[str, Float64[np.ndarray, "T T"]]
    images: np.ndarray
    chance: Float64[np.ndarray, "T"]

    @property
    def remarks(self) -> list[str]:
        """Messages about tasks without inputs, and about inputs that may belong to another task."""
        found = []
        missing = [task for task, count in zip(self.tasks, self.images, strict=True) if not count]
        if missing:
            found.append(
                f"Functional metrics are undefined for all pairs that contain {', '.join(missing)}, because unlabelled"
                " images or a head are missing."
            )
        for place, task in enumerate(self.tasks):
            agreement, chance = self.base["agreement"][place], self.chance[place]
            if agreement < _NEAR_CHANCE * chance:
                found.append(
                    f"The base agrees with the model of '{task}' on {agreement:.0%} of {self.images[place]}"
                    f" images, close to the {chance:.0%} {BY_CHANCE}. Either the base cannot solve this task, or the"
                    " images belong to another task."
                )
        return found


@dataclass(frozen=True)
class FunctionalEvidence:
    """Compare the predictions of models and of sets of models with the predictions of each task's own model."""

    def combine(self, subject: Subject) -> FunctionalValues:
        """Compare predictions one task after another, so that only the features of one task are in memory."""
        read, views, tasks = Features().combine(subject), subject.required_views("functional"), subject.tasks
        known = answerable(views, tasks)
        if not known:
            raise UserError(
                "The functional metrics require unlabelled images and heads, but no task has both. "
                "Choose other metrics, such as metric=paper."
            )
        count = len(tasks)
        base = {name: np.full(count, np.nan) for name in MEASURES}
        partner = {name: np.full((count, count), np.nan) for name in MEASURES}
        ensemble = {name: np.full((count, count), np.nan) for name in MEASURES}
        images, chance = np.zeros(count, dtype=int), np.full(count, np.nan)
        for column, task in enumerate(tasks):
            if task not in known:
                continue
            head = head_of(views, task)
            rows = [read(model, task) for model in tasks]
            own = probabilities(rows[column], head)
            of_base = probabilities(read(None, task), head)
            images[column], chance[column] = len(own), chance_agreement(of_base, own)
            for name, measure in MEASURES.items():
                base[name][column] = measure(of_base, own)
            for row in range(count):
                of_partner = probabilities(rows[row], head)
                of_both = probabilities(normalised(rows[row] + rows[column]), head)
                for name, measure in MEASURES.items():
                    partner[name][row, column] = measure(of_partner, own)
                    ensemble[name][row, column] = measure(of_both, own)
        return FunctionalValues(tasks, base, partner, ensemble, images, chance)


@dataclass(frozen=True)
class SetAnswers:
    """Compute predictions from the mean of several models' features."""

    def combine(self, subject: Subject) -> Callable[[Sequence[str], str], float]:
        """Return a function that averages a measure over a set of tasks.

        The average is NaN if one of the tasks lacks inputs or a head.
        """
        read, views = Features().combine(subject), subject.required_views("functional")

        def value(chosen: Sequence[str], measure: str) -> float:
            if len(answerable(views, chosen)) < len(chosen):
                return float("nan")
            return float(np.mean([_of_ensemble(read, views, chosen, task, measure) for task in chosen]))

        return value


def _of_ensemble(read: ReadFeatures, views: Views, chosen: Sequence[str], task: str, measure: str) -> float:
    head = head_of(views, task)
    mean = normalised(np.sum([read(model, task) for model in chosen], axis=0))
    return MEASURES[measure](probabilities(mean, head), probabilities(read(task, task), head))


def head_of(views: Views, task: str) -> Float64[np.ndarray, "classes d"]:
    """Return the head of a task as an array in float64."""
    return views.head(task).detach().cpu().double().numpy()
