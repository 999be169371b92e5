"""What fine-tuning minimises: cross-entropy through a frozen head, plus an optional penalty."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from mergeability.errors import UserError
from mergeability.models.zero_shot import classify


def cross_entropy(
    encoder: nn.Module,
    head: Float[Tensor, "classes features"],
    images: Float[Tensor, "N *image"],
    labels: Int64[Tensor, " N"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "N classes"]]:
    """Return the mean cross-entropy and the logits head · normalise(encoder(x)) of one batch.

    `head` holds unit class embeddings times the logit scale, so logits are scaled cosines (Radford et al., 2021).
    """
    logits = classify(encoder(images), head)
    return functional.cross_entropy(logits, labels), logits


def _not_logged(name: str, value: Tensor) -> None:
    """Keep no log."""


@dataclass(frozen=True)
class Step:
    """One micro-batch as a penalty sees it.

    Attributes:
        loss: the task loss L of this micro-batch, with its graph.
        loss_again: computes L of the same micro-batch anew at the parameters' present values.
        parameters: the trainable encoder parameters θ.
        initial: their values θ0 before training, in the same order.
        reduced_precision: whether L is computed in 16 bits (autocast).
        constants: what the penalty's own `constants` made of θ0, on the parameters' device.
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
        """Return ∇L for every parameter, with its graph where that is asked for."""
        if self.known_gradients is None:
            return loss_gradients(self.loss, self.parameters, create_graph)
        if create_graph:
            return self.known_gradients
        return tuple(gradient.detach() for gradient in self.known_gradients)


@runtime_checkable
class Penalty(Protocol):
    """A term strength · R(θ) beside the task loss.

    `gradients` returns ∇(L + strength · R) for every parameter, and R itself for the log. Being asked for
    gradients rather than for a scalar lets a penalty correct the gradient where R has no cheap graph.

    A penalty is a frozen dataclass and holds no state: what it derives from θ0 (`constants`) lies with the module,
    which moves it between devices and hands it back in every `Step`.

    Attributes:
        name: of the penalty, in logs and messages.
        strength: λ ≥ 0; with 0 the penalty is never called, so training is plain, bit for bit.
        second_order: whether it differentiates the loss twice, which fused attention kernels cannot do.
    """

    # Read-only, as in a frozen dataclass.
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def strength(self) -> float | int: ...  # noqa: D102
    @property
    def second_order(self) -> bool: ...  # noqa: D102

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute, once before training, what depends on θ0 alone; names without dots."""
        ...

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇(L + strength · R) for every parameter, and R."""
        ...


def loss_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], create_graph: bool = False) -> tuple:
    """Differentiate a loss by `torch.autograd.grad`, which unlike `.grad` does not accumulate.

    A parameter the loss does not depend on has the gradient 0.
    """
    found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    )


def squared_norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum the squares of all entries: ‖x‖² of the concatenated tensors, in float32 at least."""
    return torch.stack(
        [
            tensor.float().square().sum() if tensor.dtype.itemsize < 4 else tensor.square().sum()
            for tensor in tensors
        ]
    ).sum()


def check_strength(name: str, strength: float | int) -> None:
    """Refuse a λ that is negative, infinite or not a number.

    Raises:
        UserError: it is.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(
            f"reg.lambda of {name}, or its weight in a sum, must be a finite number ≥ 0, not {strength}."
        )
