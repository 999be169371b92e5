"""Compute the merge of a set of models by one method, and its key in the store."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.merging.application import applied, apply, fixed_alpha
from mergeability.merging.method import MergeMethod
from mergeability.merging.rounding import Rounding
from mergeability.merging.stream import Streams
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.provenance import class_name
from mergeability.task_vectors.vectors import TaskVectors

# A JSON-able record that determines weights, and a function that returns them.
Weights = tuple[Mapping[str, Any], Callable[[], Mapping[str, Tensor]]]


def describe(merger: object) -> Any:
    """Return a JSON-compatible record of a merge method: its class and all options, including nested methods."""
    if dataclasses.is_dataclass(merger) and not isinstance(merger, type):
        options = {field.name: describe(getattr(merger, field.name)) for field in dataclasses.fields(merger)}
        return {"method": class_name(merger), **options}
    if merger is None or isinstance(merger, bool | int | float | str):
        return merger
    raise UserError(
        f"Expected options of a merge method to be numbers, text or methods, got {type(merger).__name__}."
    )


@dataclass(frozen=True)
class Recalibration:
    """Re-estimate batch-norm statistics of merged weights on the calibration images of the merged tasks.

    Attributes:
        evaluator: holds the encoder.
        views: hold the images.
    """

    evaluator: Evaluator
    views: Views

    def make(self, state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return a state dict with re-estimated batch-norm statistics."""
        samples = Inputs.joined([self.views.samples(task) for task in sorted(tasks)])
        return self.evaluator.recalibrated(state, samples.tensors["images"], tasks)

    def key(self, tasks: Sequence[str]) -> list[str]:
        """Return the hashes of the images from which batch-norm statistics are estimated."""
        return [self.views.samples(task).without_labels().fingerprint for task in sorted(tasks)]


@dataclass
class Merge:
    """Represent one set of models merged by one method; the merged task vector is computed on first use.

    Attributes:
        task_vectors: the models of the set.
        method: the merge method.
        profiles: the models' evidence, for a method that needs data.
        recalibrate: re-estimates the batch-norm statistics of merged weights; None for an encoder without batch norms.
    """

    task_vectors: TaskVectors
    method: MergeMethod
    profiles: Profiles | None = None
    recalibrate: "Recalibration | None" = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the merged models."""
        return self.task_vectors.tasks

    @cached_property
    def direction(self) -> dict[str, Tensor]:
        """The merged task vector; its tensors have the same names as in the checkpoints."""
        return self.task_vectors.assembled(self.method(self._models))

    @property
    def _models(self) -> TaskVectors | Profiles:
        given = self.profiles if self.method.needs_data else None
        return self.task_vectors if given is None else given

    @property
    def _streamed(self) -> Mapping[str, Tensor]:
        """The merged task vector; each tensor is computed on access where method and layout allow it."""
        known = "direction" in self.__dict__ or self.task_vectors.splits_tensors
        if known or not isinstance(self.method, Streams):
            return self.direction
        return self.method.streamed(self._models)

    def state(
        self, alpha: float, *, dtype: torch.dtype | None = None, rounding: Rounding | None = None
    ) -> dict[str, Tensor]:
        """Return the merged weights at a scale, as `mergeability.merging.apply` does."""
        base = self.task_vectors.base_checkpoint
        state = apply(base, self.direction, alpha, dtype=dtype, rounding=rounding)
        return state if self.recalibrate is None else self.recalibrate.make(state, self.tasks)

    def lazy_state(
        self, alpha: float, *, dtype: torch.dtype | None = None, rounding: Rounding | None = None
    ) -> Mapping[str, Tensor]:
        """Return the weights of `state`; tensors are computed on access, unless batch norms are re-estimated."""
        if self.recalibrate is not None:
            return self.state(alpha, dtype=dtype, rounding=rounding)
        base = self.task_vectors.base_checkpoint
        return applied(base, self._streamed, alpha, dtype=dtype, rounding=rounding)

    def weights(self, alpha: float) -> dict[str, Any]:
        """Return all inputs that determine the merged task vector, as a JSON-compatible record."""
        record = {
            "base": self.task_vectors.base_hash,
            # Names are included, because masks (DARE) and the order of summation depend on them.
            "models": sorted(self.task_vectors.hashes.items()),
            "merge": _without_alpha(describe(self.method)),
            "alpha": alpha,
        }
        if self.method.needs_data and self.profiles is not None:
            record["data"] = self.profiles.data_key
        if self.task_vectors.layout:
            record["layout"] = self.task_vectors.layout
        if self.recalibrate is not None:
            record["recalibrated"] = self.recalibrate.key(self.tasks)
        return record

    def weights_at(self, alpha: float) -> Weights:
        """Return the record that identifies the weights at a scale, and a function that computes these weights."""
        return self.weights(alpha), lambda: self.state(alpha)


def given_alpha(alpha: float | str, merge: Merge) -> tuple[float, str]:
    """Return a scale as a number, and describe the source of this number; "own" is the method's own scale."""
    if isinstance(alpha, str):
        return fixed_alpha(merge.method, merge.task_vectors), "the method's own"
    return float(alpha), "given for all methods"


def own_weights(task_vectors: TaskVectors, task: str) -> Weights:
    """Return the record that identifies a task's fine-tuned weights, and a function that reads these weights."""
    return {"file": task_vectors.hashes[task]}, lambda: task_vectors.model(task).state_dict()


def base_weights(task_vectors: TaskVectors) -> Weights:
    """Return the record that identifies the base model's weights, and a function that reads these weights."""
    return {"file": task_vectors.base_hash}, lambda: task_vectors.base_checkpoint.state_dict()


def _without_alpha(described: Any) -> Any:
    """Remove scales from a method's record, because the merged task vector does not depend on them."""
    if not isinstance(described, dict):
        return described
    return {name: _without_alpha(value) for name, value in described.items() if name != "alpha"}
