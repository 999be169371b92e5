"""The data behind the data-dependent views: the encoder, the heads and the calibration samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.profiles.activations import last_layer
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import tensors_hash
from mergeability.weights.encoder_state import encoder_state


@dataclass(frozen=True)
class Views:
    """The data that activations and gradients need.

    Attributes:
        encoder: the visual encoder, images → features; only its architecture is used, its weights never.
        heads: task → frozen zero-shot head (classes × d), with the logit scale in it.
        calibration: task → (preprocessed images N×3×H×W in float, labels N).
        pool: tasks whose images make the pool of the activations; every task of `calibration` when None.
        layer: dotted name of the layer whose activations are averaged; found when None.
        batch_size: images per pass; changes nothing but speed and memory.
        configuration: what the encoder was built from, as a JSON-able record: part of the store's keys.
    """

    encoder: nn.Module
    heads: Mapping[str, Tensor]
    calibration: Mapping[str, tuple[Tensor, Tensor]]
    pool: Sequence[str] | None = None
    layer: str | None = None
    batch_size: int = 32
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def state(self, task_vectors: TaskVectors, task: str, device: str = "cpu") -> dict[str, Tensor]:
        """Read one fine-tuned model's weights under the encoder's names, in float32, onto a device.

        Raises:
            UserError: the checkpoint's tensors are not the encoder's.
        """
        tensors = task_vectors.model(task).state_dict()
        state = encoder_state(self.encoder, tensors, f"the model of '{task}'")
        return {name: tensor.to(device) for name, tensor in state.items()}

    def samples(self, task: str) -> tuple[Tensor, Tensor]:
        """Return a task's calibration images and labels.

        Raises:
            UserError: there are none for this task.
        """
        if task not in self.calibration:
            raise UserError(
                f"No calibration images for '{task}': have {', '.join(self.calibration) or 'none'}."
            )
        return self.calibration[task]

    def head(self, task: str) -> Tensor:
        """Return a task's frozen head.

        Raises:
            UserError: there is none for this task.
        """
        if task not in self.heads:
            raise UserError(f"No zero-shot head for '{task}': have {', '.join(self.heads) or 'none'}.")
        return self.heads[task]

    @property
    def pool_images(self) -> Tensor:
        """The images of all tasks of the pool, in the order of the tasks' names."""
        return torch.cat([self.samples(task)[0] for task in self._pool_tasks])

    def gradient_key(self, task: str) -> dict[str, Any]:
        """Say what a task's gradients depend on besides the model."""
        return {
            "encoder": self._architecture,
            "head": self._hash_head(task),
            "samples": self._hash_samples(task),
        }

    @cached_property
    def activation_key(self) -> dict[str, Any]:
        """What mean activations depend on besides the model."""
        pool = [tensors_hash({"images": self.samples(task)[0]}) for task in self._pool_tasks]
        layer = last_layer(self.encoder) if self.layer is None else self.layer
        return {"encoder": self._architecture, "layer": layer, "pool": pool}

    @property
    def _pool_tasks(self) -> list[str]:
        return sorted(self.calibration if self.pool is None else self.pool)

    @cached_property
    def _architecture(self) -> str:
        # The text form names every module, but not all of their options: the number of heads is missing.
        return digest({"encoder": repr(self.encoder), "configuration": dict(self.configuration)})

    def _hash_head(self, task: str) -> str:
        return tensors_hash({"head": self.head(task)})

    def _hash_samples(self, task: str) -> str:
        images, labels = self.samples(task)
        return tensors_hash({"images": images, "labels": labels})
