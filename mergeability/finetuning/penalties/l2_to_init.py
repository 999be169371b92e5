"""Stay near the base model: λ‖θ − θ0‖²."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.finetuning.objective import Step, check_strength, squared_norm


@dataclass(frozen=True)
class L2ToInit:
    """Penalise the squared distance from the base: R = ‖θ − θ0‖², so ∇R = 2(θ − θ0), in closed form.

    Known as L2-SP (Li et al., ICML 2018).

    Raises:
        UserError: `strength` is negative or not finite.
    """

    strength: float | int = 0.0
    name: str = "l2_to_init"
    second_order: bool = False

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return nothing: every step has θ0 itself."""
        return {}

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇L + 2λ(θ − θ0) for every parameter, and R."""
        of_loss = step.gradients_of_loss()
        with torch.no_grad():
            changes = [now - then for now, then in zip(step.parameters, step.initial, strict=True)]
            value = squared_norm(changes)
            # Into the changes' own memory: new memory of a model's size costs as much as the arithmetic.
            for g, change in zip(of_loss, changes, strict=True):
                torch.add(g, change, alpha=2 * self.strength, out=change)
            return tuple(changes), value
