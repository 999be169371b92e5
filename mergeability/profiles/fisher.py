"""The diagonal Fisher information of one model at its own task: how much each weight matters to the labels."""

import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergeability.errors import UserError
from mergeability.models.zero_shot import classify
from mergeability.profiles.activations import evaluation_mode
from mergeability.profiles.gradients import task_gradients
from mergeability.profiles.linear_inputs import parameter_owners

logger = logging.getLogger(__name__)

# Beside the samples' gradients: the weights, what was summed up so far, and one more for what is under way.
_MODELS = 3

# Parameter name → gradients of several samples, stacked
_Stacks = dict[str, Tensor]


def fisher_roots(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    head: Float[Tensor, "classes d"],
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, " n"],
    *,
    samples_at_once: int = 8,
) -> dict[str, Tensor]:
    """Compute √F, F = 1/n Σ_i (∇θ CE_i)², in eval mode: the empirical Fisher information at the true labels.

    The root, because F itself underflows in float32 below gradients of 1e-22, which a confident model has; the
    root is right down to those of 1e-38. The logits are the normalised features times the frozen head.

    Args:
        encoder: the visual encoder; its own weights are neither used nor changed.
        state: the weights to run it with, under the encoder's names.
        head: the task's frozen zero-shot head, with the logit scale in it.
        images: the task's own preprocessed calibration images.
        labels: their classes.
        samples_at_once: how many gradients, each as large as the model, are held; changes nothing but rounding.

    Returns:
        Parameter name → root of the mean square, in float32, on the CPU; zero where the features do not depend
        on the parameter. Tied parameters have an entry under each of their names.

    Raises:
        UserError: there is no sample, a label has no row in the head, or a gradient is not finite.

    Paper: Matena & Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.
    """
    _check_samples(head, images, labels)
    owners = parameter_owners(encoder)
    state = {name: value.detach() for name, value in state.items() if owners.get(name, name) == name}
    names = [name for name in state if name in owners]
    roots = {name: torch.zeros_like(state[name]) for name in names}
    with evaluation_mode(encoder):
        for stacks in _gradients(encoder, state, names, head, images, labels, samples_at_once):
            for name in names:
                # Neither squares nor their sum ever stand in float32.
                length = torch.linalg.vector_norm(stacks.pop(name), dim=0, dtype=torch.float64)
                roots[name] = torch.hypot(roots[name], length.float())
    found = {name: roots.pop(name).div_(len(images) ** 0.5).cpu() for name in names}
    _check_finite(found)
    aliases = {
        name: found[owner].clone() for name, owner in owners.items() if owner in found and name != owner
    }
    return found | aliases


def fitting_samples(state: Mapping[str, Tensor], memory: float | int) -> int:
    """Return how many gradients as large as the model fit into `memory` bytes beside it; at least 1."""
    size = sum(tensor.nbytes for tensor in state.values())
    return max(1, int(memory // max(size, 1)) - _MODELS)


def _gradients(
    encoder: nn.Module,
    state: Mapping[str, Tensor],
    names: list[str],
    head: Tensor,
    images: Tensor,
    labels: Tensor,
    samples_at_once: int,
) -> Iterator[_Stacks]:
    """Give the samples' own gradients, several samples at a time, or one where the encoder allows no more."""
    at_once = _batched_gradients(encoder, state, names, head)
    device = next(iter(state.values())).device
    together = True
    for batch, classes in zip(images.split(samples_at_once), labels.split(samples_at_once), strict=True):
        if together:
            try:
                found = at_once(batch.detach().to(device), classes.to(device))
            except RuntimeError as error:
                logger.info("One sample at a time, since this encoder takes no more: %s", error)
                together = False
            else:
                yield found
                continue
        for position in range(len(batch)):
            one = slice(position, position + 1)
            gradients = task_gradients(encoder, state, head, batch[one], classes[one], batch_size=1)
            yield {name: gradients.encoder[name].to(device)[None] for name in names}


def _batched_gradients(
    encoder: nn.Module, state: Mapping[str, Tensor], names: list[str], head: Tensor
) -> Callable[[Tensor, Tensor], _Stacks]:
    parameters = {name: state[name] for name in names}

    def loss(weights: Mapping[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        features = functional_call(encoder, {**state, **weights}, (image[None],))
        if isinstance(features, tuple):
            features = features[0]
        return functional.cross_entropy(classify(features, head.to(features)), label[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))

    def at_once(images: Tensor, labels: Tensor) -> _Stacks:
        # The fused kernels know no samples apart.
        with sdpa_kernel(SDPBackend.MATH):
            return of_each(parameters, images, labels)

    return at_once


def _check_samples(head: Tensor, images: Tensor, labels: Tensor) -> None:
    if not len(images):
        raise UserError("Expected at least one calibration sample for the Fisher information, got none.")
    if int(labels.min()) < 0 or int(labels.max()) >= len(head):
        raise UserError(
            f"Expected labels from 0 to {len(head) - 1}, one per class of the head; "
            f"got {int(labels.min())} to {int(labels.max())}."
        )


def _check_finite(roots: Mapping[str, Tensor]) -> None:
    for name, root in roots.items():
        if not torch.isfinite(root).all():
            raise UserError(
                f"The Fisher information of '{name}' is not finite: the model or its calibration images overflow. "
                "Check them, or leave the model out."
            )
