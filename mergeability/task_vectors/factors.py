"""Compute singular triplets of the models' deltas, once per model and matrix."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.linalg.decompositions import leading_triplets
from mergeability.task_vectors.deltas import Deltas

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 2


def stacked_triplets(
    deltas: Deltas, name: str, rank: int | None, *, keep: bool
) -> tuple[Float[Tensor, "T m r"], Float[Tensor, "T r"], Float[Tensor, "T r n"]]:
    """Return, for one matrix, the leading singular triplets U, S, Vh of every model's delta; see `TaskVectors.svd`.

    Args:
        deltas: the models.
        name: a 2-D parameter.
        rank: how many triplets to return; all min(m, n) when None.
        keep: whether computed triplets are kept in the store.

    Raises:
        UserError: the parameter is not a matrix.
    """
    shape = deltas.parameters[name].shape
    if len(shape) != 2:
        raise UserError(f"Expected a matrix, got '{name}' of shape {shape}.")
    wanted = min(shape) if rank is None else min(rank, *shape)
    # Cut at once, because a model's stored triplets are more than are wanted of it.
    U, S, Vh = zip(
        *(_cut(_factors(deltas, task, name, wanted, keep=keep), wanted) for task in deltas.tasks), strict=True
    )
    return torch.stack(U), torch.stack(S), torch.stack(Vh)


def _cut(factors: Mapping[str, Tensor], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    return factors["U"][:, :rank].clone(), factors["S"][:rank].clone(), factors["Vh"][:rank].clone()


def _factors(deltas: Deltas, task: str, name: str, rank: int, *, keep: bool) -> Mapping[str, Tensor]:
    if not keep:
        return _triplets(deltas.delta(task, name), rank)
    smaller = min(deltas.parameters[name].shape)
    # Half of the triplets suffice for every merge of two or more models.
    kept = smaller // 2 if rank <= smaller // 2 else smaller
    key = {
        "base": deltas.base_hash,
        "model": deltas.hashes[task],
        **deltas.parameters[name].content,
        "rank": kept,
        "version": _VERSION,
    }
    return deltas.store.arrays("svd", key, lambda: _triplets(deltas.delta(task, name), kept))


def _triplets(matrix: Float[Tensor, "m n"], rank: int) -> dict[str, Tensor]:
    return dict(zip(("U", "S", "Vh"), leading_triplets(matrix, rank), strict=True))
