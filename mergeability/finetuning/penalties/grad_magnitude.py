"""Prefer flat minima: λ‖∇θ L‖², the squared gradient norm of the loss."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.finetuning.objective import Step, loss_gradients, squared_norm
from mergeability.finetuning.penalties.base import Penalty, check_strength


@dataclass(frozen=True)
class GradMagnitude(Penalty):
    """Penalise the squared gradient norm of the micro-batch loss: R = ‖g‖², g = ∇θ L.

    ∇R = 2Hg, H the Hessian. Two estimators:

    - `finite_difference`: 2Hg ≈ 2‖g‖ (∇L(θ + r·g/‖g‖) − g) / r: one more forward and backward pass, with any
      attention kernel. r is `radius`; the error is of order r, plus the rounding of a difference of gradients
      over r, so a lower precision wants a larger radius.
    - `exact`: differentiates g itself; needs second derivatives of every operation.

    Summing `parameter.grad ** 2` instead would add a constant: `.grad` carries no graph.
    Source: arXiv 2601.22285; the estimator as in Barrett and Dherin (ICLR 2021), Zhao et al. (ICML 2022).

    Formula: R = ‖∇θ L‖².

    Range: [0, ∞), in squared units of the loss per unit of a parameter.

    Cost: one more forward and backward pass per step (`finite_difference`), or second derivatives (`exact`).

    Attributes:
        strength: λ ≥ 0.
        estimator: "finite_difference" or "exact".
        radius: r > 0, a length in parameter space; `None` takes 1e-3, or 1e-2 under reduced precision.

    Raises:
        UserError: `strength` is negative or not finite, `radius` not positive or not finite, or `estimator` unknown.

    Examples:
        >>> import torch
        >>> from mergeability.finetuning.objective import Step
        >>> from mergeability.finetuning.penalties.grad_magnitude import GradMagnitude
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> base = torch.tensor([0.0, 0.0])
        >>> penalty = GradMagnitude(strength=0.5, estimator="exact")
        >>> def loss():
        ...     return theta.square().sum() / 2
        >>> step = Step(loss(), loss, [theta], [base])
        >>> penalty.gradients(step)
        ((tensor([2., 4.]),), tensor(5.))
    """

    strength: float | int = 0.0
    estimator: str = "finite_difference"
    radius: float | None = None
    name: str = "grad_magnitude"

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)
        if self.estimator not in ("finite_difference", "exact"):
            raise UserError(
                f"Expected reg.penalty.estimator to be finite_difference or exact, got {self.estimator!r}."
            )
        if self.radius is not None and not 0 < self.radius < math.inf:
            raise UserError(f"reg.penalty.radius must be a finite number above 0, not {self.radius}.")

    @property
    def second_order(self) -> bool:
        """Return whether the loss is differentiated twice."""
        return self.estimator == "exact"

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return the gradient g + 2λHg of every parameter, and the penalty R = ‖g‖²."""
        return self._exact(step) if self.second_order else self._finite_difference(step)

    def _exact(self, step: Step) -> tuple[tuple[Tensor, ...], Tensor]:
        of_loss = step.gradients_of_loss(create_graph=True)
        value = squared_norm(of_loss)
        of_value = loss_gradients(value, step.parameters)
        total = tuple(g.detach().add(h, alpha=self.strength) for g, h in zip(of_loss, of_value))
        return total, value.detach()

    def _finite_difference(self, step: Step) -> tuple[tuple[Tensor, ...], Tensor]:
        of_loss = step.gradients_of_loss()
        value = squared_norm(of_loss)
        norm = value.sqrt()
        if (
            norm == 0
        ):  # At a stationary point Hg is 0 as well, and no direction for the finite difference exists.
            return of_loss, value
        radius = self.radius or (1e-2 if step.reduced_precision else 1e-3)
        # Restored from copies, because adding a step and subtracting it again could change the last bit of weights.
        here = [parameter.detach().clone() for parameter in step.parameters]
        with torch.no_grad():
            for parameter, g in zip(step.parameters, of_loss):
                parameter.add_(g * (radius / norm))
        try:
            ahead = loss_gradients(step.loss_again(), step.parameters)
        finally:
            with torch.no_grad():
                for parameter, value_here in zip(step.parameters, here):
                    parameter.copy_(value_here)
        factor = 2 * self.strength * norm / radius
        return tuple(g + factor * (a - g) for g, a in zip(of_loss, ahead)), value
