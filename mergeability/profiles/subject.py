"""Describe the models to profile, their data and the context of the run."""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.profiles.batches import fitting_batch_size
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors


class Subject:
    """Hold several models and all that is required to compute their evidence.

    Attributes:
        task_vectors: the models' weights; their store keeps the evidence.
        views: inputs, heads and the encoder; None if there is no data.
        run: device, memory budget and progress.
    """

    def __init__(self, task_vectors: TaskVectors, views: Views | None, run: Run) -> None:
        self.task_vectors, self.views, self.run = task_vectors, views, run
        self._samples_at_once: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the models."""
        return self.task_vectors.tasks

    @property
    def store(self) -> Store:
        """The store in which evidence is cached."""
        return self.task_vectors.store

    def select(self, tasks: Iterable[str]) -> "Subject":
        """Return a copy with only the given models, in the given order."""
        # Determined from all models, so that selections of models share computed values.
        if self.views is not None:
            _ = self.data_store
        selected = copy.copy(self)
        selected.task_vectors = self.task_vectors.select(tasks)
        return selected

    def settings(self, version: int) -> dict[str, Any]:
        """Return the settings that determine computed values, as part of a store key.

        Args:
            version: version of the algorithm.
        """
        return {"device": self.run.device.partition(":")[0], "version": version}

    def required_views(self, what: str) -> Views:
        """Return the encoder, heads and samples; raise an error if there are none.

        Raises:
            UserError: there is none.
        """
        if self.views is None:
            raise UserError(
                f"The {what} metrics require images and heads. Pass images and heads to Profiles in the argument"
                " `views`, or request only metrics that are computed from weights."
            )
        return self.views

    def state(self, task: str) -> dict[str, Tensor]:
        """Load one model's weights onto the device, under the encoder's parameter names."""
        return self.required_views("activation").state(self.task_vectors, task, self.run.device)

    @cached_property
    def encoder(self) -> nn.Module:
        """A copy of the encoder on the device; the given encoder is not changed."""
        encoder = self.required_views("activation").encoder
        return encoder if self.run.device == "cpu" else copy.deepcopy(encoder).to(self.run.device)

    def batch_size(self, state: Mapping[str, Tensor], inputs: Inputs) -> int:
        """Return the batch size, which is the same for all models."""
        if self._samples_at_once is None:
            at_most = self.required_views("data").batch_size
            self._samples_at_once = fitting_batch_size(
                self.encoder, state, inputs[:1], self.run.memory, at_most
            )
        return self._samples_at_once

    @property
    def tensors(self) -> set[str]:
        """The names of the checkpoints' tensors, regardless of how tensors are split into parameters."""
        return {parameter.tensor for parameter in self.task_vectors.parameters.values()}

    @cached_property
    def data_store(self) -> Store:
        """The store for entries as large as a model; it is on disk if the entries would exceed the memory budget."""
        vectors = self.task_vectors
        size = 4 * len(self.tasks) * sum(vectors.parameters[name].size for name in vectors.names)
        if vectors.store.root is not None or size <= self.run.memory:
            return vectors.store
        # Removed together with the last object that uses these models.
        self.spilled = _TemporaryFolder()
        return Store(self.spilled.path)


class _TemporaryFolder:
    """A temporary folder that is removed without a warning when its last reference disappears."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="mergeability-gradients-")
        self.cleanup = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
