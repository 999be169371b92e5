"""Apply a merged task vector M to the base model at a scale α."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import (
    PUBLISHED,
    TUNED,
    HasPublishedAlpha,
    MergeMethod,
    Preprocessing,
    check_alpha,
)
from mergeability.merging.stream import Streamed
from mergeability.task_vectors.parameters import is_running_statistic
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.lazy_state import LazyState

# Number of elements that are computed at a time: 1 MiB.
_PART = 2**18


def scaled_by(method: MergeMethod) -> MergeMethod:
    """Return the method that defines alpha (the inner one for DARE).

    Args:
        method: a merge method.

    Examples:
        >>> from mergeability.merging import Dare, Ties
        >>> from mergeability.merging.application import scaled_by
        >>> scaled_by(Dare(then=Ties(density=0.1))).density
        0.1
    """
    return (method.then or method) if isinstance(method, Preprocessing) else method


def fixed_alpha(method: MergeMethod, task_vectors: TaskVectors) -> float:
    """Return the default scale α of a method for these models, without using images.

    This is the method's `alpha` if it is a number, the default of its class if it is "tuned", and the scale that the
    paper gives for this architecture and number of models if it is "published".

    Args:
        method: the merge method; for DARE, the inner method's scale is returned.
        task_vectors: the models to merge.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import TaskArithmetic, fixed_alpha
        >>> models = tiny_task_vectors()
        >>> fixed_alpha(TaskArithmetic(), models), fixed_alpha(TaskArithmetic(alpha=0.5), models)
        (0.3, 0.5)
    """
    source = scaled_by(method)
    alpha = source.alpha
    if alpha == TUNED:
        alpha = _default_alpha(source)
    if alpha == PUBLISHED:
        alpha = published_alpha(source, task_vectors)[0]
    return float(alpha)


def published_alpha(method: MergeMethod, task_vectors: TaskVectors) -> tuple[float, bool]:
    """Return the published scale and True, or 1 and False if no scale was published.

    Args:
        method: a merge method.
        task_vectors: the models, whose architecture and number determine the scale.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Average, IsoC
        >>> from mergeability.merging.application import published_alpha
        >>> published_alpha(Average(), tiny_task_vectors()), published_alpha(IsoC(), tiny_task_vectors())
        ((1.0, False), (1.0, False))
    """
    return method.published_alpha(task_vectors) if isinstance(method, HasPublishedAlpha) else (1.0, False)


def _default_alpha(method: MergeMethod) -> float | int | str:
    """Return the default of the field `alpha`; 1 for a class without it, as DARE over plain averaging."""
    for field in dataclasses.fields(method) if dataclasses.is_dataclass(method) else ():
        if field.name == "alpha" and field.default is not dataclasses.MISSING:
            return field.default
    return 1.0


@dataclass
class Rounding:
    """The rounding error of a merge, over all parameters that are saved with less precision than float32.

    With the exact values θ = θ_0 + α·M and the rounded ones θ̂, in float32:

    Attributes:
        change: Σ (θ - θ_0)².
        lost: Σ (θ̂ - θ)².
        moved: parameters with θ ≠ θ_0.
        unmoved: those of them with θ̂ = θ_0, whose change vanished.

    Examples:
        >>> import torch
        >>> from mergeability.merging.application import Rounding, apply
        >>> rounding = Rounding()
        >>> base = {"w": torch.ones(2, dtype=torch.bfloat16)}
        >>> apply(base, {"w": torch.tensor([0.001, 0.5])}, alpha=1, rounding=rounding)["w"]
        tensor([1.0000, 1.5000], dtype=torch.bfloat16)
        >>> rounding.unmoved, round(rounding.survives, 6)
        (1, 0.999996)
    """

    change: float = 0.0
    lost: float = 0.0
    moved: int = 0
    unmoved: int = 0

    @property
    def survives(self) -> float:
        """The share of the squared change that survives rounding; it is below 0 if rounding errors dominate.

        Formula: 1 - Σ(θ̂ - θ)² / Σ(θ - θ_0)².
        """
        return 1 - self.lost / self.change if self.change else 1.0

    def add(self, other: "Rounding") -> None:
        """Add the sums of other parameters."""
        self.change, self.lost = self.change + other.change, self.lost + other.lost
        self.moved, self.unmoved = self.moved + other.moved, self.unmoved + other.unmoved

    def count(self, base: Tensor, exact: Tensor, rounded: Tensor) -> None:
        """Add one tensor to the running sums, given its float32 values in the base, the merge and the rounded merge."""
        # The norm adds in float64 without a copy in float64, in a sixteenth of the time of `.double().square().sum()`.
        self.change += float(torch.linalg.vector_norm(exact - base, dtype=torch.float64)) ** 2
        self.lost += float(torch.linalg.vector_norm(rounded - exact, dtype=torch.float64)) ** 2
        # NumPy compares and counts in a fifth of PyTorch's time.
        before, after, kept = (one.cpu().numpy() for one in (base, exact, rounded))
        moved = after != before
        self.moved += int(np.count_nonzero(moved))
        self.unmoved += int(np.count_nonzero(moved & (kept == before)))


def apply(
    base: Checkpoint | Mapping[str, Tensor] | str | Path,
    merged: Mapping[str, Tensor],
    alpha: float | int | str,
    *,
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> dict[str, Tensor]:
    """Add a merged task vector to the base: θ = θ_0 + α·M, computed in float32 and returned in the base's dtypes.

    Tensors that only the base has (integer buffers, a text tower) are copied. Running statistics are not scaled: M
    holds their average. Tied tensors stay tied.

    Args:
        base: the state dict the models were fine-tuned from, its checkpoint, or the path of one. Of a file, only the
            visual encoder is read, under canonical names; a mapping is used as it is.
        merged: the merged task vector M, by parameter name.
        alpha: the scale α, a finite number; see `fixed_alpha` for a method's default.
        dtype: dtype of all floating-point tensors of the result; the base's own when None.
        rounding: counts the effect of rounding to the result's dtypes.

    Returns:
        A new state dict that shares no memory with the base.

    Raises:
        UserError: alpha is not a finite number, M has a tensor the base lacks or has in another shape, or a value of
            the result lies outside the range of its dtype.

    Examples:
        >>> import torch
        >>> from mergeability.merging import apply
        >>> apply({"weight": torch.ones(3)}, {"weight": torch.tensor([1.0, -1.0, 0.0])}, alpha=0.5)
        {'weight': tensor([1.5000, 0.5000, 1.0000])}
    """
    if not isinstance(base, Mapping):
        opened = base if isinstance(base, Checkpoint) else Checkpoint.open(base)
        return dict(applied(opened, merged, alpha, dtype=dtype, rounding=rounding))
    scale = _checked(alpha, merged, {name: tuple(value.shape) for name, value in base.items()})
    moved: dict[str, Tensor] = {}
    for names in _by_place(base):
        # A file may contain only one of the names of a tied tensor.
        name = next((name for name in names if name in merged), names[0])
        moved |= dict.fromkeys(names, _result(name, base[name], merged, scale, dtype, rounding))
    return {name: moved[name] for name in base}


def applied(
    base: Checkpoint,
    merged: Mapping[str, Tensor],
    alpha: float | int | str,
    *,
    dtype: torch.dtype | None = None,
    rounding: Rounding | None = None,
) -> LazyState:
    """Add a merged task vector to the base, as `apply` does, but compute each tensor only on access.

    Args:
        base: the checkpoint of the base.
        merged: the merged task vector M, by parameter name.
        alpha: the scale α, a finite number.
        dtype: dtype of all floating-point tensors of the result; the base's own when None.
        rounding: counts the effect of rounding at the first access of each tensor.

    Raises:
        UserError: alpha is not a finite number, or M has a tensor the base lacks or has in another shape. On access: a
            value of the result lies outside the range of its dtype.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.application import applied
        >>> base = tiny_task_vectors(cars=[1, 0]).base_checkpoint
        >>> applied(base, {"weight": torch.tensor([1.0, -1.0])}, alpha=0.5)["weight"]
        tensor([64.5000, 63.5000])
    """
    scale = _checked(alpha, merged, base.shapes)
    uncounted = set(base.names)

    def read(name: str) -> Tensor:
        counted = rounding if name in uncounted else None
        uncounted.discard(name)
        if not (isinstance(merged, Streamed) and merged.has_blocks(name)):
            return _result(name, base.tensor(name), merged, scale, dtype, counted)
        # The blocks hold the base's values already, which are not read again.
        result = torch.empty(base.shapes[name], dtype=_target(own[name], dtype))
        move = partial(_move, result.view(-1), _scale(name, scale), counted is not None)
        return _moved(name, result, merged.map_blocks(name, move), scale, counted)

    own = base.dtypes
    dtypes = {name: _target(own[name], dtype) for name in base.names}
    shapes = {name: tuple(base.shapes[name]) for name in base.names}
    one_thread = merged.one_thread if isinstance(merged, Streamed) else True
    return LazyState(shapes, dtypes, read, one_thread=one_thread)


def _checked(
    alpha: float | int | str, merged: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> float | int:
    """Check the scale, and that a merged task vector fits the base; return the scale."""
    if isinstance(alpha, str):
        raise UserError(f"Expected alpha to be a number here, got {alpha!r}: use fixed_alpha(method, …).")
    check_alpha(alpha)
    # What is computed on access is not computed for its shape.
    given = (
        merged.shapes if isinstance(merged, Streamed) else {name: one.shape for name, one in merged.items()}
    )
    for name, shape in given.items():
        found = tuple(shapes[name]) if name in shapes else "no such tensor"
        if found != tuple(shape):
            raise UserError(
                f"In the merged task vector, '{name}' has the shape {tuple(shape)}, but the base has {found}. "
                "Pass the base from which the models were fine-tuned."
            )
    return alpha


def _target(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and own.is_floating_point else own


def _by_place(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the names of each tensor: views of the same memory with the same layout."""
    groups: dict[Any, list[str]] = {}
    for name, value in tensors.items():
        # An empty tensor has no memory address to compare.
        place = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else name
        groups.setdefault(place, []).append(name)
    return list(groups.values())


def _result(
    name: str,
    value: Tensor,
    merged: Mapping[str, Tensor],
    alpha: float | int,
    dtype: torch.dtype | None,
    rounding: Rounding | None,
) -> Tensor:
    """Return a tensor of the base, moved if the merged task vector contains its name."""
    target = _target(value.dtype, dtype)
    if name not in merged:
        rounded = value.to(target, copy=True)
        _refuse(name, _lost(value, target), rounded, value.dtype, alpha)
        return rounded
    result = torch.empty(value.shape, dtype=target, device=value.device)
    base, change, scale = value.reshape(-1), merged[name].reshape(-1), _scale(name, alpha)
    # In parts, whose memory is used again: new memory for whole tensors takes several times as long as the sums.
    parts = (slice(start, start + _PART) for start in range(0, len(base), _PART))
    move = partial(_move, result.view(-1), scale, rounding is not None)
    moves = (move(part, base[part].float(), change[part].to(base.device)) for part in parts)
    return _moved(name, result, moves, alpha, rounding)


def _scale(name: str, alpha: float | int) -> float | int:
    return 1.0 if is_running_statistic(name) else alpha


def _move(
    out: Tensor, scale: float | int, counts: bool, part: slice, base: Tensor, change: Tensor
) -> tuple[int, Rounding]:
    """Fill a part of a flattened tensor with θ_0 + α·M; return how many values do not fit, and the rounding error."""
    exact = torch.add(base, change, alpha=scale)
    out[part] = exact
    rounding = Rounding()
    if counts and out.dtype.itemsize < torch.float32.itemsize:
        rounding.count(base, exact, out[part].float())
    return _lost(exact, out.dtype), rounding


def _moved(
    name: str,
    result: Tensor,
    moves: Iterable[tuple[int, Rounding]],
    alpha: float | int,
    rounding: Rounding | None,
) -> Tensor:
    """Return a tensor once all of its parts are filled, in the order of the parts."""
    lost = 0
    for beyond, counted in moves:
        lost += beyond
        if rounding is not None:
            rounding.add(counted)
    _refuse(name, lost, result, torch.float32, alpha)
    return result


def _lost(exact: Tensor, dtype: torch.dtype) -> int:
    """Count the values outside the range of a dtype, infinite ones and NaN among them."""
    if not dtype.is_floating_point:
        return 0
    largest, ulp = torch.finfo(dtype).max, torch.finfo(dtype).eps
    # Beyond the largest value plus half a unit in the last place, rounding gives infinity, NaN, or, in some
    # formats without infinity, the largest value.
    # The exponent by frexp, because the logarithm of the largest float64 is rounded up to 1024.
    bound = largest + ulp / 2 * 2.0 ** (math.frexp(largest)[1] - 1)
    return _beyond(exact, bound if dtype.itemsize < exact.dtype.itemsize else math.inf)


def _refuse(name: str, lost: int, rounded: Tensor, exact: torch.dtype, alpha: float | int) -> None:
    """Raise an error if values computed in the dtype `exact` do not fit into that of the rounded tensor."""
    if not lost:
        return
    dtype = rounded.dtype
    wider = "" if dtype == exact else ", or save in a wider format: dtype=float32"
    raise UserError(
        f"The merge at alpha={alpha:g} has {lost} of {rounded.numel()} values of '{name}' outside the range of "
        f"{str(dtype).removeprefix('torch.')} (up to {torch.finfo(dtype).max:g}). Merge at a smaller alpha{wider}."
    )


def _beyond(values: Tensor, bound: float) -> int:
    """Count the values that are not below a bound in magnitude, such as NaN."""
    if not values.numel():
        return 0
    # PyTorch finds no extremes in formats of one byte.
    values = values.float() if values.dtype.itemsize == 1 else values
    # Both ends are NaN if any value is. Counting takes several times as long.
    low, high = (float(end) for end in values.aminmax())
    return 0 if -bound < low and high < bound else int((~(values.abs() < bound)).sum())
