"""Compute the leading singular vectors of the base model's matrices; penalties compare updates with these vectors."""

import logging
from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.finetuning.objective import Step
from mergeability.linalg.decompositions import leading_triplets

logger = logging.getLogger(__name__)


def check_count(name: str, k: float | int) -> None:
    """Check the number of leading singular vectors.

    Raises:
        UserError: it is not a whole number ≥ 1.
    """
    if not (isinstance(k, int) and not isinstance(k, bool) and k >= 1):
        raise UserError(f"{name}: reg.penalty.k must be a whole number ≥ 1, not {k}.")


def leading_vectors(
    initial: Sequence[Tensor], k: int, name: str
) -> Iterator[tuple[int, Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "n k"]]]:
    """Compute the SVD of every base matrix once; yield U_k, σ₁ … σ_k and V_k after the parameter's index.

    A matrix is a parameter with two axes, positional embeddings included and convolutions not, as in the metrics.
    Vectors of a singular value 0 are zero: they have no direction. Accurate to float32, in the matrix's dtype.

    Raises:
        UserError: k is larger than the smaller side of a matrix. Taking fewer vectors there would silently leave
            that matrix free in one of its two spaces.
    """
    matrices = {index: tensor for index, tensor in enumerate(initial) if tensor.ndim == 2}
    for matrix in matrices.values():
        rows, columns = matrix.shape
        if k > min(rows, columns):
            raise UserError(
                f"{name}: reg.penalty.k is {k}, but the encoder has a matrix of size {rows} × {columns}. Set "
                f"reg.penalty.k to at most {min(min(matrix.shape) for matrix in matrices.values())}."
            )
    logger.info("%s: decomposing the base model's %d matrices, once.", name, len(matrices))
    for index, matrix in matrices.items():
        # On the CPU, because the decomposition uses float64, which is slow or unsupported on some devices.
        found = leading_triplets(matrix.detach().cpu(), k)
        left, values, right = (part.to(matrix) for part in found)
        yield index, left, values, right.mT.contiguous()


def matrix_changes(step: Step) -> Iterator[tuple[int, Float[Tensor, "m n"]]]:
    """Compute τ = θ − θ0, one tensor per matrix."""
    for index, (now, then) in enumerate(zip(step.parameters, step.initial, strict=True)):
        if now.ndim == 2:
            yield index, now.detach() - then
