"""Stay near the base model: λ‖θ − θ0‖²."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.finetuning.objective import Step, squared_norm
from mergeability.finetuning.penalties.base import Penalty, check_strength


@dataclass(frozen=True)
class L2ToInit(Penalty):
    """Penalise the squared distance from the base: R = ‖θ − θ0‖², so ∇R = 2(θ − θ0), in closed form.

    Known as L2-SP (Li et al., ICML 2018).

    Formula: R = ‖θ − θ0‖².

    Range: [0, ∞), in squared units of a parameter.

    Attributes:
        strength: λ ≥ 0.

    Cost: element-wise operations on the parameters.

    Raises:
        UserError: `strength` is negative or not finite.

    Paper: Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks, arXiv 1802.01483.

    Examples:
        >>> import torch
        >>> from mergeability.finetuning.objective import Step
        >>> from mergeability.finetuning.penalties.l2_to_init import L2ToInit
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> base = torch.tensor([0.0, 0.0])
        >>> penalty = L2ToInit(strength=0.5)
        >>> def loss():
        ...     return theta.sum()
        >>> step = Step(loss(), loss, [theta], [base])
        >>> penalty.gradients(step)
        ((tensor([2., 3.]),), tensor(5.))
    """

    strength: float | int = 0.0
    name: str = "l2_to_init"

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇L + 2λ(θ − θ0) for every parameter, and R."""
        of_loss = step.gradients_of_loss()
        with torch.no_grad():
            changes = [now - then for now, then in zip(step.parameters, step.initial, strict=True)]
            value = squared_norm(changes)
            # Computed in place, because allocating memory of the model's size costs as much as the arithmetic.
            for g, change in zip(of_loss, changes, strict=True):
                torch.add(g, change, alpha=2 * self.strength, out=change)
            return tuple(changes), value
