"""Penalise changes outside the leading subspace of the base: λ Σ ‖τ − P_U τ P_V‖²_F, summed over matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.checks import Count
from mergeability.errors import UserError
from mergeability.finetuning.leading_vectors import check_count, leading_vectors, matrix_changes
from mergeability.finetuning.objective import Step, squared_norm
from mergeability.finetuning.penalties.base import Penalty, check_strength

SIDES = ("u", "v", "uv")


@dataclass(frozen=True)
class Subspace(Penalty):
    """Penalise the part of an update outside the base matrix's leading subspace: R = Σ ‖τ − P_U τ P_V‖²_F.

    τ = W − W0, P_U = U_k U_kᵀ and P_V = V_k V_kᵀ, U_k and V_k the k leading singular vectors of W0. With `side`
    "u" or "v" the other projector is the identity. τ ↦ P_U τ P_V is an orthogonal projection, so the gradient is
    ∇R = 2(τ − P_U τ P_V), in closed form. The range is 0 ≤ R ≤ ‖τ‖²_F. Without matrices, R = 0.

    Formula: R = Σ ‖τ − P_U τ P_V‖²_F, summed over matrices.

    Range: [0, ‖τ‖²_F], in squared units of a parameter.

    Cost: products of every matrix with 2k vectors per step; one partial SVD per base matrix before training.

    Attributes:
        strength: λ ≥ 0.
        k: how many leading singular vectors span the subspace.
        side: "u" (columns of τ), "v" (rows) or "uv" (both).

    Raises:
        UserError: `strength` is negative or not finite, `k` below 1 or (in `constants`) larger than a matrix, or
            `side` unknown.

    Source: this project; not published elsewhere.

    Examples:
        >>> import torch
        >>> from mergeability.finetuning.objective import Step
        >>> from mergeability.finetuning.penalties.subspace import Subspace
        >>> theta = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
        >>> base = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> penalty = Subspace(strength=0.5, k=1)
        >>> def loss():
        ...     return theta.sum()
        >>> step = Step(loss(), loss, [theta], [base], constants=penalty.constants([base]))
        >>> penalty.gradients(step)
        ((tensor([[1., 2.],
                [1., 2.]]),), tensor(2.))
    """

    strength: float | int = 0.0
    k: Count = 10
    side: str = "uv"
    name: str = "subspace"

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)
        check_count(self.name, self.k)
        if self.side not in SIDES:
            raise UserError(f"Expected reg.penalty.side to be u, v or uv, got {self.side!r}.")

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return U_k (`left/<index>`) and V_k (`right/<index>`) of every base matrix, as selected by `side`."""
        found = {}
        for index, left, _, right in leading_vectors(initial, self.k, self.name):
            found |= {f"left/{index}": left} if "u" in self.side else {}
            found |= {f"right/{index}": right} if "v" in self.side else {}
        return found

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇L + 2λ(τ − P_U τ P_V) for every matrix, ∇L for the rest, and R."""
        total = list(step.gradients_of_loss())
        value = torch.zeros_like(step.loss.detach())
        with torch.no_grad():
            for index, change in matrix_changes(step):
                outside = _outside(
                    change, step.constants.get(f"left/{index}"), step.constants.get(f"right/{index}")
                )
                value = value + squared_norm([outside])
                total[index] = torch.add(total[index], outside, alpha=2 * self.strength, out=outside)
        return tuple(total), value


def _outside(
    change: Float[Tensor, "m n"], left: Float[Tensor, "m k"] | None, right: Float[Tensor, "n k"] | None
) -> Float[Tensor, "m n"]:
    """Subtract P_U τ P_V from τ, in place, through its k×n or m×k factors, never through a projector."""
    if left is None:
        assert right is not None
        return change.addmm_(change @ right, right.mT, alpha=-1)
    inside = left.mT @ change
    if right is not None:
        inside = inside @ right @ right.mT
    return change.addmm_(left, inside, alpha=-1)
