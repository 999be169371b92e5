"""Provide the encoder, heads and calibration samples from which activations and gradients are computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.profiles.encoders import last_layer
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import tensors_hash
from mergeability.weights.encoder_state import encoder_state


@dataclass(frozen=True)
class Views:
    """Hold the encoder, heads and calibration samples from which activations and gradients are computed.

    Attributes:
        encoder: inputs → features; only its architecture is used, its weights are replaced.
        heads: task → frozen zero-shot head, classes × d, multiplied by the logit scale.
        calibration: task → preprocessed inputs with their labels.
        pool: tasks whose inputs are used for activations; every task of `calibration` when None.
        layer: dotted name of the layer whose activations are averaged; the last block when None.
        batch_size: samples per forward pass; affects only speed and memory.
        configuration: JSON-able record of what the encoder was built from: part of the store's keys.
        unlabelled: task → preprocessed inputs without labels, for functional evidence.

    Raises:
        UserError: unlabelled inputs have labels.

    Examples:
        >>> import torch
        >>> from mergeability.data import Inputs
        >>> from mergeability.examples import tiny_encoder
        >>> from mergeability.profiles import Views
        >>> inputs = Inputs({"images": torch.zeros(5, 3, 2, 2)}, torch.tensor([0, 1, 2, 0, 1]))
        >>> views = Views(tiny_encoder(), {"cars": torch.eye(3, 4)}, {"cars": inputs}, layer="hidden")
        >>> len(views.samples("cars")), views.head("cars").shape
        (5, torch.Size([3, 4]))
    """

    encoder: nn.Module
    heads: Mapping[str, Tensor]
    calibration: Mapping[str, Inputs]
    pool: Sequence[str] | None = None
    layer: str | None = None
    batch_size: int = 32
    configuration: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: Mapping[str, Inputs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labelled = [task for task, inputs in self.unlabelled.items() if inputs.labels is not None]
        if labelled:
            raise UserError(
                f"Expected `unlabelled` to contain no labels, got labels for {', '.join(labelled)}. Pass"
                " `inputs.without_labels()`."
            )

    def state(self, task_vectors: TaskVectors, task: str, device: str = "cpu") -> dict[str, Tensor]:
        """Load one fine-tuned model's weights onto a device as float32 tensors under the encoder's parameter names.

        Raises:
            UserError: the checkpoint's tensors do not fit the encoder.
        """
        tensors = task_vectors.model(task).state_dict()
        state = encoder_state(self.encoder, tensors, f"the model of '{task}'")
        return {name: tensor.to(device) for name, tensor in state.items()}

    def samples(self, task: str) -> Inputs:
        """Return the calibration samples of a task.

        Raises:
            UserError: there are none for this task.
        """
        if task not in self.calibration:
            raise UserError(
                f"There are no calibration images for '{task}', only for"
                f" {', '.join(self.calibration) or 'none'}."
            )
        return self.calibration[task]

    def head(self, task: str) -> Tensor:
        """Return the frozen head of a task.

        Raises:
            UserError: there is none for this task.
        """
        if task not in self.heads:
            raise UserError(
                f"There is no zero-shot head for '{task}', only for {', '.join(self.heads) or 'none'}."
            )
        return self.heads[task]

    @property
    def pool_inputs(self) -> Inputs:
        """The inputs on which activations are computed, sorted by task name."""
        return Inputs.joined([self.samples(task) for task in self._pool_tasks])

    def gradient_key(self, task: str) -> dict[str, Any]:
        """Return the record that, together with the model, identifies a task's gradients in the store."""
        return {
            "encoder": self.architecture,
            "head": tensors_hash({"head": self.head(task)}),
            "samples": self.samples(task).fingerprint,
        }

    @cached_property
    def activation_key(self) -> dict[str, Any]:
        """The description that, together with the model, identifies activations in the store."""
        pool = [self.samples(task).without_labels().fingerprint for task in self._pool_tasks]
        layer = last_layer(self.encoder) if self.layer is None else self.layer
        return {"encoder": self.architecture, "layer": layer, "pool": pool}

    @property
    def _pool_tasks(self) -> list[str]:
        return sorted(self.calibration if self.pool is None else self.pool)

    @cached_property
    def architecture(self) -> str:
        """A hash of the encoder's architecture, which is part of store keys."""
        # repr() shows every module, but not all options: the number of attention heads is missing.
        return digest({"encoder": repr(self.encoder), "configuration": dict(self.configuration)})
