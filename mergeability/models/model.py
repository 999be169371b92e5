"""What fine-tuning and analyses require of a model: an encoder, heads for tasks, and a format for samples."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mergeability.data.inputs import Inputs, Samples, Split
from mergeability.data.tasks import Task
from mergeability.store import Store


class Model(Protocol):
    """An architecture with pretrained weights, whose encoder is fine-tuned with frozen heads.

    `ClipModel` reads images and `TextModel` reads texts. Metrics, merges and predictions use only this protocol.
    """

    @property
    def name(self) -> str:
        """The name of the model, usable as a folder name."""
        ...

    @property
    def pretrained(self) -> str | None:
        """Where the pretrained weights come from; None for random weights from a seed."""
        ...

    @property
    def is_from_file(self) -> bool:
        """Whether the pretrained weights are a file or folder of the user."""
        ...

    @property
    def configuration(self) -> dict[str, Any]:
        """A JSON-able record of the architecture."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """A JSON-able record of everything that determines the encoder's features: part of the store's keys."""
        ...

    @property
    def tensor_prefix(self) -> str:
        """The prefix of the names of the encoder's tensors in the files of fine-tuned models."""
        ...

    @property
    def remarks(self) -> list[str]:
        """Messages about tensors of the pretrained weights that the model does not use."""
        ...

    def build(self, seed: int = 0) -> nn.Module:
        """Build the base model with its pretrained weights, in evaluation mode."""
        ...

    def architecture_only(self, seed: int = 0) -> nn.Module:
        """Build the base model with random weights, in evaluation mode."""
        ...

    def encoder_only(self) -> nn.Module:
        """Build the encoder with random weights, in evaluation mode."""
        ...

    def encoder_of(self, base: Any) -> nn.Module:
        """Return the part of a base model that is fine-tuned."""
        ...

    def head(self, base: Any, class_names: Sequence[str], templates: Sequence[str], /) -> Tensor:
        """Return a task's frozen head, a matrix of classes × features, computed with the base model."""
        ...

    def samples(self, task: Task, split: Split, store: Store) -> Samples:
        """Read the samples of one split of a task, and return them in the model's storage format.

        Raises:
            UserError: the task has another kind of inputs.
        """
        ...

    def task_remarks(self, task: Task) -> list[str]:
        """Return messages about samples of a task that are left out or changed in the splits read so far."""
        ...

    def preprocess(self, rows: Tensor, /) -> Tensor:
        """Turn rows of samples into the encoder's input."""
        ...

    def inputs(self, samples: Samples) -> Inputs:
        """Convert samples to the encoder's inputs, and return the inputs with their labels."""
        ...
