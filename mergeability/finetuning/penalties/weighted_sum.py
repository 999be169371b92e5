"""A weighted sum of other penalties: λ Σ wᵢ Rᵢ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.finetuning.objective import Step
from mergeability.finetuning.penalties.base import Penalty, check_strength


@dataclass(frozen=True)
class WeightedSum(Penalty):
    """Penalise a weighted sum of other penalty terms: R = Σ wᵢ Rᵢ.

    Every term is a penalty, and its own strength is its weight wᵢ ≥ 0; one of weight 0 is never called. The value
    of each term, without its weight, is logged under its name.

    Formula: R = Σ wᵢ Rᵢ.

    Range: [0, ∞), in the units of its terms.

    Cost: the sum over the terms with a weight above 0; the gradient of the loss is shared.

    Attributes:
        terms: penalties by any names.
        strength: λ ≥ 0, which scales the sum.

    Raises:
        UserError: `strength` is negative or not finite, no term has a weight above 0, or two share a name.

    Source: this project; not published elsewhere.

    Examples:
        >>> import torch
        >>> from mergeability.finetuning.objective import Step
        >>> from mergeability.finetuning.penalties.weighted_sum import WeightedSum
        >>> from mergeability.finetuning.penalties.l2_to_init import L2ToInit
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> base = torch.tensor([0.0, 0.0])
        >>> penalty = WeightedSum({"distance": L2ToInit(strength=2)}, strength=0.5)
        >>> def loss():
        ...     return theta.sum()
        >>> step = Step(loss(), loss, [theta], [base])
        >>> penalty.gradients(step)
        ((tensor([3., 5.]),), tensor(10.))
    """

    terms: Mapping[str, Penalty]
    strength: float | int = 0.0
    name: str = "mergeability"

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)
        names = [term.name for term in self._used.values()]
        if not names:
            raise UserError(
                "Expected at least one term of reg.penalty.terms with a weight above 0. Set one, for example "
                "reg.penalty.terms.l2_to_init.strength=1."
            )
        if len(set(names)) < len(names) or self.name in names:
            raise UserError(
                f"reg.penalty.terms must have different names, got {', '.join(names)}: each is logged under its name."
            )

    @property
    def _used(self) -> dict[str, Penalty]:
        return {key: term for key, term in self.terms.items() if term.strength > 0}

    @property
    def second_order(self) -> bool:
        """Return whether any term differentiates the loss twice."""
        return any(term.second_order for term in self._used.values())

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the constants of all terms; the name of each constant is prefixed with the name of its term."""
        return {
            f"{key}/{name}": tensor
            for key, term in self._used.items()
            for name, tensor in term.constants(initial).items()
        }

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇L + λ Σ wᵢ ∇Rᵢ for every parameter, and R."""
        step = replace(step, known_gradients=step.gradients_of_loss(create_graph=self.second_order))
        plain = step.gradients_of_loss()
        total, value = plain, torch.zeros_like(step.loss.detach())
        for key, term in self._used.items():
            gradients, of_term = self._scaled(term).gradients(_part(step, key))
            step.log(term.name, of_term)
            value = value + term.strength * of_term
            # Subtracting ∇L loses no further precision: the sum was already rounded at this magnitude when ∇L was
            # added.
            total = tuple(sum_ + (with_term - g) for sum_, with_term, g in zip(total, gradients, plain))
        return total, value

    def _scaled(self, term: Penalty) -> Penalty:
        # Scale the terms before the sum, because scaling afterwards would also scale the rounding error of ∇L.
        return replace(term, strength=self.strength * term.strength)


def _part(step: Step, key: str) -> Step:
    prefix = f"{key}/"
    constants = {
        name.removeprefix(prefix): tensor
        for name, tensor in step.constants.items()
        if name.startswith(prefix)
    }
    return replace(step, constants=constants)
