"""What all merge methods share: one pass over the parameters, the scale, and adding the result to the base."""

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.parameters import is_running_statistic
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

# From a parameter's name and its stack of T deltas to that parameter of the merged task vector.
Rule = Callable[[str, Tensor], Tensor]

# The methods that need no images, by the names of their configurations.
DATA_FREE = (
    "average",
    "ta",
    "ties",
    "dare",
    "tsv",
    "iso_c",
    "iso_cts",
    "consensus_ta",
    "breadcrumbs",
    "slerp",
)
TUNED, PUBLISHED = "tuned", "published"


def stream(
    task_vectors: TaskVectors, rule: Rule, *, only: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Merge one parameter at a time: one layer of all models is in memory beside the result.

    Running statistics of batch norms are averaged, whatever the rule. Tied weights are merged once.

    Args:
        task_vectors: the models.
        rule: merges one parameter.
        only: the parameters to merge, with what is tied to them; all of them when None.
    """
    tied = task_vectors.tied
    wanted = [name for name in task_vectors.names if only is None or tied.get(name, name) in only]
    merged = {name: rule(name, task_vectors.stack(name)) for name in wanted if name not in tied}
    merged = {name: merged[name] if name in merged else merged[tied[name]].clone() for name in wanted}
    if only is None:
        for name in task_vectors.buffers:
            merged[name] = mean(name, task_vectors.stack(name))
    return merged


def mean(_name: str, stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Average the deltas: the rule of plain averaging, and of what a method does not treat."""
    return stack.mean(0)


def checked(models: TaskVectors | Profiles) -> TaskVectors:
    """Check that the models can be merged, and return their task vectors sorted by name.

    Sorted, because sums in floating point depend on the order of their terms, and a merge should not.

    Raises:
        UserError: fewer than two models, or one that does not come from this base.
    """
    task_vectors = models.task_vectors if isinstance(models, Profiles) else models
    if len(task_vectors.tasks) < 2:
        raise UserError(f"Expected at least two models to merge, got {len(task_vectors.tasks)}.")
    task_vectors.check_base()
    return task_vectors.select(sorted(task_vectors.tasks))


def needs_data(method: Any) -> bool:
    """Say whether a method takes `Profiles` with images rather than bare task vectors."""
    return bool(getattr(method, "needs_data", False))


def check_alpha(alpha: object, *words: str) -> None:
    """Check a scale: a finite number, "tuned", or one of the other words.

    Raises:
        UserError: it is something else.
    """
    allowed = (TUNED, *words)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_number and not (isinstance(alpha, str) and alpha in allowed):
        named = " or ".join(f"'{word}'" for word in allowed)
        raise UserError(f"Expected alpha to be a finite number or {named}, got {alpha!r}.")


def scaled_by(method: Any) -> Any:
    """Return the method whose scale it is: that inside DARE, or the method itself."""
    return getattr(method, "then", None) or method


def fixed_alpha(method: Any, task_vectors: TaskVectors) -> float:
    """Return the scale of a method for these models without looking at images.

    That is its `alpha`; its class's default where that is "tuned"; and what its authors published for a model
    of this architecture and as many models, where that is "published".
    """
    source = scaled_by(method)
    alpha = source.alpha
    if alpha == TUNED:
        # A class without a scale of its own, as DARE over plain averaging, has 1.
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(source)}
        alpha = defaults.get("alpha", 1.0)
    if alpha == PUBLISHED:
        alpha = source.published_alpha(task_vectors)[0]
    return float(alpha)


def apply(
    base: Checkpoint | Mapping[str, Tensor] | str | Path,
    merged: Mapping[str, Tensor],
    alpha: float | int | str,
) -> dict[str, Tensor]:
    """Add a merged task vector to the base: θ = θ_0 + α·M, in float32, written in the base's own dtypes.

    Tensors of the base that M does not have (integer buffers, a text tower) are the base's own. Running
    statistics are not scaled: M holds their average. What is one tensor under two names stays one.

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
    if isinstance(alpha, str):
        raise UserError(
            f"Expected alpha to be a number here, got {alpha!r}: fixed_alpha(method, …) gives one."
        )
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
    moved: dict[str, Tensor] = {}
    for names in _by_place(base):
        # A file may have kept one name only of a tensor that has several here.
        name = next((name for name in names if name in merged), names[0])
        moved |= dict.fromkeys(names, _moved(name, base[name], merged.get(name), alpha))
    return {name: moved[name] for name in base}


def _by_place(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the names of what is one tensor: the same piece of memory, seen in the same way."""
    groups: dict[Any, list[str]] = {}
    for name, value in tensors.items():
        # A tensor without elements lies nowhere.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else name
        groups.setdefault(place, []).append(name)
    return list(groups.values())


def _moved(name: str, value: Tensor, merged: Tensor | None, alpha: float | int) -> Tensor:
    if merged is None:
        return value.clone()
    scale = 1.0 if is_running_statistic(name) else alpha
    return torch.add(value.float(), merged.to(value.device), alpha=scale).to(value.dtype)
