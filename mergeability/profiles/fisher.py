"""Compute the diagonal Fisher information of a model on its own task."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.models.features import features, place_mask
from mergeability.models.zero_shot import classify
from mergeability.profiles.encoders import evaluation_mode, parameter_owners
from mergeability.profiles.evidence import ensure_entries
from mergeability.profiles.gradients import OwnGradients, check_samples, task_gradients
from mergeability.profiles.subject import Subject
from mergeability.weights.checkpoints import PREFIX

logger = logging.getLogger(__name__)

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1
# Copies of the model in memory besides the gradients: the weights, the running sum, and a temporary.
_MODELS = 3

# (checkpoints' tensor, start, stop) → that range of the flattened tensor's Fisher information, in float64
Read = Callable[[str, int, int], np.ndarray]
# Parameter name → gradients of several samples, stacked
_Stacks = dict[str, Tensor]


@dataclass(frozen=True)
class FisherInformation:
    """Compute and store the diagonal Fisher information of every model on its own task."""

    kind: ClassVar[str] = "fisher"
    description: ClassVar[str] = "Fisher information"

    def key(self, subject: Subject, task: str) -> dict[str, Any]:
        """Return all inputs that determine a model's Fisher information, as a JSON-compatible record."""
        return {**OwnGradients().key(subject, task), "of": self.kind, "of_version": _VERSION}

    def compute(self, subject: Subject, task: str) -> dict[str, Tensor]:
        """Compute the square root of one model's Fisher information.

        Raises:
            UserError: a value is not finite; the message names the model.
        """
        views = subject.required_views("Fisher information")
        samples, head, state = views.samples(task), views.head(task), subject.state(task)
        at_once = min(fitting_samples(state, subject.run.memory), subject.batch_size(state, samples))
        try:
            return fisher_roots(subject.encoder, state, head, samples, samples_at_once=at_once)
        except UserError as error:
            raise UserError(f"The model of '{task}': {error}") from error

    def combine(self, subject: Subject) -> dict[str, Read]:
        """Return, for each task, a function that reads its Fisher information."""
        store, keys = subject.data_store, ensure_entries(self, subject, subject.data_store)

        def reader(task: str) -> Read:
            read = store.reader(self.kind, keys[task])
            return lambda name, start, stop: np.square(
                read(name.removeprefix(PREFIX), start, stop), dtype=np.float64
            )

        return {task: reader(task) for task in subject.tasks}


def fisher_roots(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    head: Float[Tensor, "classes d"],
    samples: Inputs,
    *,
    samples_at_once: int = 8,
) -> dict[str, Tensor]:
    """Compute √F for the empirical Fisher information F = 1/n Σ_i (∇θ CE_i)² at the true labels, in eval mode.

    The square root is stored, because F underflows in float32 for gradients below 1e-22, which confident models have;
    the root is accurate down to gradients of 1e-38. The logits are the normalised features times the frozen head.

    Args:
        encoder: inputs → features; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        head: the task's frozen zero-shot head, with the logit scale in it.
        samples: the task's own preprocessed calibration samples, with their classes.
        samples_at_once: number of gradients, each as large as the model, in memory; affects only rounding.

    Returns:
        Parameter name → root of the mean square, in float32, on the CPU; zero where the features do not depend
        on the parameter. Tied parameters have an entry under each of their names.

    Raises:
        UserError: there is no sample, a label has no row in the head, or a gradient is not finite.

    Paper: Matena & Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.
    """
    check_samples(head, samples, "the Fisher information")
    owners = parameter_owners(encoder)
    state = {name: value.detach() for name, value in state.items() if owners.get(name, name) == name}
    names = [name for name in state if name in owners]
    roots = {name: torch.zeros_like(state[name]) for name in names}
    with evaluation_mode(encoder):
        for stacks in _gradients(encoder, state, names, head, samples, samples_at_once):
            for name in names:
                # Squares are computed in float64, and hypot adds roots without squaring them in float32, so nothing
                # underflows.
                length = torch.linalg.vector_norm(stacks.pop(name), dim=0, dtype=torch.float64)
                roots[name] = torch.hypot(roots[name], length.float())
    found = {name: roots.pop(name).div_(len(samples) ** 0.5).cpu() for name in names}
    _check_finite(found)
    aliases = {
        name: found[owner].clone() for name, owner in owners.items() if owner in found and name != owner
    }
    return found | aliases


def fitting_samples(state: Mapping[str, Tensor], memory: float | int) -> int:
    """Return how many per-sample gradients fit into `memory` bytes in addition to the model, at least 1."""
    size = sum(tensor.nbytes for tensor in state.values())
    return max(1, int(memory // max(size, 1)) - _MODELS)


def _gradients(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    names: list[str],
    head: Tensor,
    samples: Inputs,
    samples_at_once: int,
) -> Iterator[_Stacks]:
    """Yield per-sample gradients, several samples at a time, or one if the encoder does not support batches."""
    at_once = _batched_gradients(encoder, state, names, head)
    device = next(iter(state.values())).device
    # Sequences are differentiated one by one, because their lengths differ, which vmap does not support.
    together = place_mask(encoder, samples[:1]) is None
    for batch in samples.batches(samples_at_once):
        if together:
            try:
                found = at_once(batch.to(device))
            # vmap does not support some operations, such as data-dependent control flow.
            except RuntimeError as error:
                logger.info(
                    "Gradients are computed one sample at a time, because they cannot be computed in batches"
                    " for this encoder: %s",
                    error,
                )
                together = False
            else:
                yield found
                continue
        for one in batch.batches(1):
            gradients = task_gradients(encoder, state, head, one, batch_size=1)
            yield {name: gradients.encoder[name].to(device)[None] for name in names}


def _batched_gradients(
    encoder: nn.Module, state: Mapping[str, Tensor], names: list[str], head: Tensor
) -> Callable[[Inputs], _Stacks]:
    parameters = {name: state[name] for name in names}

    def loss(weights: dict[str, Tensor], tensors: dict[str, Tensor], label: Tensor) -> Tensor:
        sample = Inputs({name: tensor[None] for name, tensor in tensors.items()})
        found = features(encoder, sample, {**state, **weights})
        return functional.cross_entropy(classify(found, head.to(found)), label[None])

    # The gradient of each sample separately, because the squares must be taken before averaging.
    of_each = vmap(grad(loss), in_dims=(None, 0, 0))

    def at_once(batch: Inputs) -> _Stacks:
        # The labels exist: they were checked before.
        assert batch.labels is not None
        tensors = {name: tensor.detach() for name, tensor in batch.tensors.items()}
        # Disable fused attention kernels, which do not support per-sample gradients.
        with sdpa_kernel(SDPBackend.MATH):
            return of_each(parameters, tensors, batch.labels)

    return at_once


def _check_finite(roots: Mapping[str, Tensor]) -> None:
    for name, root in roots.items():
        if not torch.isfinite(root).all():
            raise UserError(
                f"The Fisher information of '{name}' is not finite, because the weights of this model or the"
                " values of its calibration images are too large or not finite. Check both, or leave the model out."
            )
