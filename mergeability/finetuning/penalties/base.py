"""The protocol of penalties: a strength, a name and a gradient; all other members have defaults."""

import math
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.finetuning.objective import Step


@runtime_checkable
class Penalty(Protocol):
    """The protocol of penalties: a penalty is a term λ · R(θ), with λ = `strength`, which is added to the task loss.

    A penalty is a frozen dataclass that inherits from this class, with fields `strength` and `name`, and defines
    `gradients`. It is stateless: values derived from θ0 (`constants`) are stored in the module, which moves them
    between devices and passes them in every `Step`.

    Penalties return gradients instead of a scalar, so that R does not need a cheap autograd graph.
    A test compares it with central differences of L + strength · R for every penalty in `conf/reg`.

    Attributes:
        name: name of the penalty, in logs and messages.
        strength: λ ≥ 0; with 0 the penalty is never called, so training is plain, bit for bit.
        second_order: whether it differentiates the loss twice, which fused attention kernels cannot do.

    Examples:
        >>> from mergeability.finetuning.penalties.base import Penalty
        >>> from mergeability.finetuning.penalties.l2_to_init import L2ToInit
        >>> isinstance(L2ToInit(strength=0.1), Penalty)
        True
    """

    # Lets type checkers accept `dataclasses.replace` for the strength of any penalty.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    # Read-only, as in a frozen dataclass.
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def strength(self) -> float | int: ...  # noqa: D102

    @property
    def second_order(self) -> bool:
        """Return whether the loss is differentiated twice; False by default."""
        return False

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute, once before training, named constants that depend only on θ0; none by default."""
        return {}

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇(L + strength · R) for every parameter, and R."""
        ...


def check_strength(name: str, strength: float | int) -> None:
    """Check that λ is finite and not negative.

    Args:
        name: name of the penalty, for the message.
        strength: λ.

    Raises:
        UserError: it is.

    Examples:
        >>> from mergeability.finetuning.penalties.base import check_strength
        >>> check_strength("l2_to_init", 0.1)
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise UserError(
            f"Expected the strength of penalty {name} (reg.lambda, or a weight in a sum of penalties) to be a finite "
            f"number ≥ 0, got {strength}."
        )
