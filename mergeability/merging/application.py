"""Apply a merged task vector M to the base model at a scale α."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from mergeability.merging.rounding import Rounding
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

    def first(name: str) -> Rounding | None:
        counted = rounding if name in uncounted else None
        uncounted.discard(name)
        return counted

    def read(name: str) -> Tensor:
        if name not in parts:
            return _result(name, base.tensor(name), merged, scale, dtype, first(name))
        result = torch.empty(shapes[name], dtype=dtypes[name])
        flat = result.view(-1)

        def fill(start: int, values: Tensor) -> None:
            flat[start : start + len(values)] = values

        deque(parts[name](fill), maxlen=0)
        return result

    def apply_to_parts(name: str, use: Callable[[int, Tensor], Any]) -> Iterator[Any]:
        assert isinstance(merged, Streamed)
        counted = first(name)

        # The blocks hold the base's values already, which are not read again.
        def move(part: slice, of_base: Tensor, change: Tensor) -> tuple[int, Rounding, Any]:
            rounded, lost, error = _moved(
                of_base, change, _scale(name, scale), dtypes[name], counted is not None
            )
            return lost, error, use(part.start, rounded)

        yield from _counted(name, merged.map_blocks(name, move), shapes[name], dtypes[name], scale, counted)

    dtypes = {name: _target(own, dtype) for name, own in base.dtypes.items()}
    shapes = {name: tuple(base.shapes[name]) for name in base.names}
    blocks = [name for name in shapes if isinstance(merged, Streamed) and merged.has_blocks(name)]
    parts = {name: partial(apply_to_parts, name) for name in blocks}
    one_thread = merged.one_thread if isinstance(merged, Streamed) else True
    return LazyState(shapes, dtypes, read, parts=parts, one_thread=one_thread)


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
        _refuse(name, _lost(value, target), value.shape, target, value.dtype, alpha)
        return rounded
    result = torch.empty(value.shape, dtype=target, device=value.device)
    base, change, scale = value.reshape(-1), merged[name].reshape(-1), _scale(name, alpha)
    # In parts, whose memory is used again: new memory for whole tensors takes several times as long as the sums.
    parts = (slice(start, start + _PART) for start in range(0, len(base), _PART))
    flat = result.view(-1)

    def move(part: slice) -> tuple[int, Rounding, None]:
        moved = _moved(base[part].float(), change[part].to(base.device), scale, target, rounding is not None)
        flat[part] = moved[0]
        return *moved[1:], None

    deque(_counted(name, map(move, parts), value.shape, target, alpha, rounding), maxlen=0)
    return result


def _scale(name: str, alpha: float | int) -> float | int:
    return 1.0 if is_running_statistic(name) else alpha


def _moved(
    base: Tensor, change: Tensor, scale: float | int, dtype: torch.dtype, counts: bool
) -> tuple[Tensor, int, Rounding]:
    """Return θ_0 + α·M in a dtype, in new memory, with the number of values that do not fit and the rounding error."""
    exact = torch.add(base, change, alpha=scale)
    rounded, rounding = exact.to(dtype), Rounding()
    if counts and dtype.itemsize < torch.float32.itemsize:
        rounding.count(base, exact, rounded.float())
    return rounded, _lost(exact, dtype), rounding


def _counted(
    name: str,
    moves: Iterable[tuple[int, Rounding, Any]],
    shape: Sequence[int],
    dtype: torch.dtype,
    alpha: float | int,
    rounding: Rounding | None,
) -> Iterator[Any]:
    """Yield the last item of each move of a part; after all parts, refuse a tensor with values that did not fit."""
    lost = 0
    for beyond, error, found in moves:
        lost += beyond
        if rounding is not None:
            rounding.add(error)
        yield found
    _refuse(name, lost, shape, dtype, torch.float32, alpha)


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


def _refuse(
    name: str, lost: int, shape: Sequence[int], dtype: torch.dtype, exact: torch.dtype, alpha: float | int
) -> None:
    """Raise an error if values of a tensor that were computed in the dtype `exact` do not fit into a dtype."""
    if not lost:
        return
    wider = "" if dtype == exact else ", or save in a wider format: dtype=float32"
    raise UserError(
        f"The merge at alpha={alpha:g} has {lost} of {math.prod(shape)} values of '{name}' outside the range of "
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
