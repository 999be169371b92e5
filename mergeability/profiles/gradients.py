"""The gradients of one model at its own task: towards its weights, and towards its input images."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mergeability.errors import UserError
from mergeability.models.zero_shot import classify
from mergeability.profiles.activations import evaluation_mode


@dataclass(frozen=True)
class Gradients:
    """Gradients of the cross-entropy of one model on its own calibration samples, in eval mode.

    Attributes:
        encoder: parameter name → mean over the samples of ∇θ CE.
        inputs: per-sample ∇x CE, divided by the number of samples.
    """

    encoder: dict[str, Tensor]
    inputs: Float[Tensor, "n channels height width"]


def task_gradients(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    head: Float[Tensor, "classes d"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    *,
    batch_size: int = 32,
) -> Gradients:
    """Compute both gradients in one forward and one backward pass over the samples.

    Sums of per-sample losses are differentiated and divided by n at the end, so the batch size changes
    nothing. The logits are the normalised features times the frozen head.

    Args:
        encoder: the visual encoder; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        head: the task's frozen zero-shot head, with the logit scale in it.
        images: the task's own preprocessed calibration images.
        labels: their classes.
        batch_size: images per pass.

    Raises:
        UserError: there is no sample, or a label has no row in the head.
    """
    if not len(images):
        raise UserError("Expected at least one calibration sample for the gradients, got none.")
    if int(labels.min()) < 0 or int(labels.max()) >= len(head):
        raise UserError(
            f"Expected labels from 0 to {len(head) - 1}, one per class of the head; "
            f"got {int(labels.min())} to {int(labels.max())}."
        )
    names = [name for name, _ in encoder.named_parameters() if name in state]
    totals = {name: torch.zeros_like(state[name]) for name in names}
    inputs = []
    with evaluation_mode(encoder), torch.enable_grad():
        for batch, classes in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            of_encoder, of_images = _summed_gradients(encoder, state, names, head, batch, classes)
            inputs.append(of_images)
            for name, gradient in zip(names, of_encoder, strict=True):
                totals[name] += gradient
    count = len(images)
    return Gradients(
        encoder={name: (total / count).cpu() for name, total in totals.items()},
        inputs=(torch.cat(inputs) / count).cpu(),
    )


def _summed_gradients(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    names: list[str],
    head: Tensor,
    images: Tensor,
    labels: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Differentiate the batch's summed loss towards the parameters and the images."""
    parameters = {name: state[name].detach().requires_grad_() for name in names}
    device = next(iter(parameters.values())).device
    images = images.detach().to(device, copy=True).requires_grad_()
    features = functional_call(encoder, {**state, **parameters}, (images,))
    if isinstance(features, tuple):
        features = features[0]
    logits = classify(features, head.to(device, features.dtype))
    loss = functional.cross_entropy(logits, labels.to(device), reduction="sum")
    sources = [*parameters.values(), images]
    # A parameter the features do not depend on has gradient zero.
    gradients = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
    return [*gradients[:-1]], gradients[-1]
