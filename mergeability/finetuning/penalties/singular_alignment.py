"""Preserve the base's leading singular vectors: λ Σ (‖U_kᵀ τ‖²_F + ‖τ V_k‖²_F) / Σ_{i≤k} σᵢ(W0)² over matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.checks import Count
from mergeability.finetuning.leading_vectors import check_count, leading_vectors, matrix_changes
from mergeability.finetuning.objective import Step, squared_norm
from mergeability.finetuning.penalties.base import Penalty, check_strength


@dataclass(frozen=True)
class SingularAlignment(Penalty):
    """Penalise rotations of the leading singular vectors: R = Σ (‖U_kᵀ τ‖²_F + ‖τ V_k‖²_F) / Σ_{i≤k} σᵢ².

    τ = W − W0; U_k, V_k and σ₁ … σ_k are the k leading singular triplets of W0. If U_kᵀ τ and τ V_k vanish, W has
    them as singular triplets too; to first order nothing else rotates them, so no decomposition is needed during
    training. ∇R = 2(U_k U_kᵀ τ + τ V_k V_kᵀ) / Σ_{i≤k} σᵢ², in closed form. R ≥ 0 has no unit. A base matrix that
    is zero has no singular vectors and is not penalised. Without matrices, R = 0.

    Formula: R = Σ (‖U_kᵀ τ‖²_F + ‖τ V_k‖²_F) / Σ_{i≤k} σᵢ², summed over matrices.

    Range: [0, ∞), without a unit.

    Cost: products of every matrix with 2k vectors per step; one partial SVD per base matrix before training.

    Attributes:
        strength: λ ≥ 0.
        k: how many leading singular vectors are kept.

    Raises:
        UserError: `strength` is negative or not finite, or `k` below 1 or (in `constants`) larger than a matrix.

    Source: this project; not published elsewhere.

    Examples:
        >>> import torch
        >>> from mergeability.finetuning.objective import Step
        >>> from mergeability.finetuning.penalties.singular_alignment import SingularAlignment
        >>> theta = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
        >>> base = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> penalty = SingularAlignment(strength=0.5, k=1)
        >>> def loss():
        ...     return theta.sum()
        >>> step = Step(loss(), loss, [theta], [base], constants=penalty.constants([base]))
        >>> penalty.gradients(step)
        ((tensor([[1.5000, 1.2500],
                [1.0000, 1.0000]]),), tensor(0.7500))
    """

    strength: float | int = 0.0
    k: Count = 10
    name: str = "singular_alignment"

    def __post_init__(self) -> None:
        check_strength(self.name, self.strength)
        check_count(self.name, self.k)

    def constants(self, initial: Sequence[Tensor]) -> dict[str, Tensor]:
        """For every base matrix, return U_k (`left/<index>`) and V_k (`right/<index>`), both divided by √(Σ_{i≤k} σᵢ²).

        The division is done here, so that training steps need no synchronisation with the device.
        """
        found = {}
        for index, left, values, right in leading_vectors(initial, self.k, self.name):
            length = values.square().sum().sqrt()
            length = torch.where(length > 0, length, 1)  # The vectors of a zero matrix are zero.
            found |= {f"left/{index}": left / length, f"right/{index}": right / length}
        return found

    def gradients(self, step: Step) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Return ∇L + λ∇R for every matrix, ∇L for the rest, and R."""
        total = list(step.gradients_of_loss())
        value = torch.zeros_like(step.loss.detach())
        with torch.no_grad():
            for index, change in matrix_changes(step):
                left, right = step.constants[f"left/{index}"], step.constants[f"right/{index}"]
                rows, columns = left.mT @ change, change @ right
                value = value + squared_norm([rows, columns])
                with_rows = torch.addmm(total[index], left, rows, alpha=2 * self.strength)
                total[index] = torch.addmm(with_rows, columns, right.mT, alpha=2 * self.strength)
        return tuple(total), value
