"""What all merge methods share: one pass over the parameters, and adding the result to the base."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.checkpoints import Checkpoint
from mergeability.errors import UserError
from mergeability.task_vectors import TaskVectors, is_running_statistic

# From a parameter's name and its stack of T deltas to that parameter of the merged task vector.
Rule = Callable[[str, Tensor], Tensor]


def stream(task_vectors: TaskVectors, rule: Rule) -> dict[str, Tensor]:
    """Merge one parameter at a time: one layer of all models is in memory beside the result.

    Running statistics of batch norms are averaged, whatever the rule.
    """
    merged = {name: rule(name, task_vectors.stack(name)) for name in task_vectors.names}
    for name in task_vectors.buffers:
        merged[name] = mean(name, task_vectors.stack(name))
    return merged


def mean(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Average the deltas: the rule of plain averaging, and of what a method does not treat."""
    return stack.mean(0)


def checked(task_vectors: TaskVectors) -> TaskVectors:
    """Check that the models can be merged, and return them sorted by name.

    Sorted, because sums in floating point depend on the order of their terms, and a merge should not.

    Raises:
        UserError: fewer than two models, or one that does not come from this base.
    """
    if len(task_vectors.tasks) < 2:
        raise UserError(f"Expected at least two models to merge, got {len(task_vectors.tasks)}.")
    task_vectors.check_base()
    return task_vectors.select(sorted(task_vectors.tasks))


def check_alpha(alpha: object) -> None:
    """Check a scale.

    Raises:
        UserError: it is not a finite number.
    """
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_number:
        raise UserError(f"Expected alpha to be a finite number, got {alpha!r}.")


def apply(
    base: Checkpoint | Mapping[str, Tensor] | str | Path,
    merged: Mapping[str, Tensor],
    alpha: float | int,
) -> dict[str, Tensor]:
    """Add a merged task vector to the base: θ = θ_0 + α·M, in float32, written in the base's own dtypes.

    Tensors of the base that M does not have (integer buffers, a text tower) are the base's own. Running
    statistics are not scaled: M holds their average.

    Args:
        base: the state dict the models were fine-tuned from, its checkpoint, or the path of one. From a file
            the visual encoder alone is read, under canonical names; a mapping is taken as it is.
        merged: the merged task vector M.
        alpha: the scale α; a method's `alpha` is its default.

    Returns:
        A new state dict that shares no memory with the base.

    Raises:
        UserError: alpha is not a finite number, or M has a tensor the base lacks or has in another shape.
    """
    check_alpha(alpha)
    if not isinstance(base, Mapping):
        base = (base if isinstance(base, Checkpoint) else Checkpoint.open(base)).state_dict()
    for name, value in merged.items():
        if name not in base or base[name].shape != value.shape:
            found = tuple(base[name].shape) if name in base else "no such tensor"
            raise UserError(
                f"The merged task vector has '{name}' of shape {tuple(value.shape)}, the base has {found}: "
                "give the base the models were fine-tuned from."
            )
    return {name: _moved(name, value, merged.get(name), alpha) for name, value in base.items()}


def _moved(name: str, value: Tensor, merged: Tensor | None, alpha: float | int) -> Tensor:
    if merged is None:
        return value.clone()
    scale = 1.0 if is_running_statistic(name) else alpha
    return torch.add(value.float(), merged.to(value.device), alpha=scale).to(value.dtype)
