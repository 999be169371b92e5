"""The objective of fine-tuning: cross-entropy with a frozen head, plus an optional penalty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from mergeability.models.zero_shot import classify


def cross_entropy(
    encoder: nn.Module,
    head: Float[Tensor, "classes features"],
    inputs: Float[Tensor, "N *sample"] | Int64[Tensor, "N length"],
    labels: Int64[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "N classes"]]:
    """Return the mean cross-entropy and the logits head · normalise(encoder(x)) of one batch.

    `head` holds unit class embeddings times the logit scale, so logits are scaled cosines (Radford et al., 2021).
    """
    logits = classify(encoder(inputs), head)
    return functional.cross_entropy(logits, labels), logits


def _not_logged(name: str, value: Tensor) -> None:
    """Keep no log."""


@dataclass(frozen=True)
class Step:
    """One micro-batch, the input of penalties.

    Attributes:
        loss: the task loss L of this micro-batch, with its graph.
        loss_again: recomputes L of the same micro-batch at the current values of the parameters.
        parameters: the trainable encoder parameters θ.
        initial: their values θ0 before training, in the same order.
        reduced_precision: whether L is computed in 16 bits (autocast).
        constants: result of the penalty's `constants` for θ0, on the parameters' device.
        known_gradients: ∇L, where it is known already: a loss can be differentiated only once.
        log: takes the name and the value of a part of the penalty.
    """

    loss: Float[Tensor, ""]
    loss_again: Callable[[], Float[Tensor, ""]]
    parameters: Sequence[nn.Parameter]
    initial: Sequence[Tensor]
    reduced_precision: bool = False
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    known_gradients: tuple[Tensor, ...] | None = None
    log: Callable[[str, Tensor], None] = _not_logged

    def gradients_of_loss(self, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Return ∇L for every parameter; keep the autograd graph of ∇L if `create_graph` is true."""
        if self.known_gradients is None:
            return loss_gradients(self.loss, self.parameters, create_graph)
        if create_graph:
            return self.known_gradients
        return tuple(gradient.detach() for gradient in self.known_gradients)


def loss_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], create_graph: bool = False) -> tuple:
    """Differentiate a loss with `torch.autograd.grad`, which does not accumulate into `.grad`.

    A parameter the loss does not depend on has the gradient 0.
    """
    found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    )


def squared_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Compute the sum of squares of all entries, ‖x‖² of the concatenated tensors, in float32 or higher precision."""
    return torch.stack(
        [
            tensor.float().square().sum() if tensor.dtype.itemsize < 4 else tensor.square().sum()
            for tensor in tensors
        ]
    ).sum()
