"""Define kinds of evidence: values that are computed once, stored, and combined into arrays over all models.

A kind of evidence is a file of this package with a frozen dataclass that has `combine`. It defines the keys and the
version of its entries, so a new kind requires no change to other files: `Profiles.evidence` accepts any kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from mergeability.errors import UserError
from mergeability.profiles.subject import Subject
from mergeability.store import Store

Found = TypeVar("Found", covariant=True)


@runtime_checkable
class Evidence(Protocol[Found]):
    """Define the interface of the kinds of evidence that `Profiles.evidence` accepts.

    Implementations are frozen dataclasses of their options, so that equal evidence is computed once.

    Examples:
        >>> from dataclasses import dataclass
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.profiles import Evidence
        >>> @dataclass(frozen=True)
        ... class LargestChange:
        ...     name: str
        ...     def combine(self, subject):
        ...         return subject.task_vectors[self.name].abs().amax(1).tolist()
        >>> isinstance(LargestChange("weight"), Evidence)
        True
        >>> Profiles(tiny_task_vectors(cars=[3, -5], svhn=[1, 2])).evidence(LargestChange("weight"))
        [5.0, 2.0]
    """

    def combine(self, subject: Subject) -> Found:
        """Compute the entries that the store lacks, and combine the entries of all models."""
        ...


@runtime_checkable
class ModelEntries(Protocol):
    """Define the interface for evidence that stores the tensors of each model in one entry of the store.

    Attributes:
        kind: name of such entries in the store.
        description: description of the work, for the progress.
    """

    kind: ClassVar[str]
    description: ClassVar[str]

    def key(self, subject: Subject, task: str) -> dict[str, Any]:
        """Return all inputs that determine a model's entry in the store, as a JSON-compatible record."""
        ...

    def compute(self, subject: Subject, task: str) -> Mapping[str, Tensor]:
        """Compute the tensors that the store keeps for a model."""
        ...


def ensure_entries(entries: ModelEntries, subject: Subject, store: Store) -> dict[str, dict[str, Any]]:
    """Compute missing entries, one model at a time; each computation uses all cores or the GPU.

    Returns:
        Task → key of the model's entry.
    """
    keys = {task: entries.key(subject, task) for task in subject.tasks}

    def ensure(task: str) -> None:
        # Do not keep the tensors, because the gradients of 20 large models would not fit in memory.
        store.ensure(entries.kind, keys[task], lambda: entries.compute(subject, task))

    subject.run.map(ensure, subject.tasks, description=entries.description)
    return keys


def finite_grams(
    view: str, layers: Float64[np.ndarray, "L T T"], tasks: Sequence[str]
) -> Float64[np.ndarray, "L T T"]:
    """Check that Gram matrices of the models' vectors are finite, and return them read-only.

    Args:
        view: what the vectors are, such as `task_vector` or `activation`, for the message.
        layers: one Gram matrix per layer.
        tasks: the models.

    Raises:
        UserError: a model's vector is not finite.
    """
    squares = np.diagonal(layers, axis1=1, axis2=2).sum(0)
    for task, square in zip(tasks, squares, strict=True):
        if not np.isfinite(square):
            raise UserError(
                f"The {view} of '{task}' is not finite, because the weights of the model or the values of its"
                " calibration images are too large or not finite. Check both, or leave the model out."
            )
    return frozen(layers)


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only view of an array, because all metrics share it and a copy may take several GiB."""
    view = np.asarray(array, dtype=np.float64).view()
    view.setflags(write=False)
    return view
