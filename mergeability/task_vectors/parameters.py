"""Split the tensors of checkpoints into parameters, and reassemble the tensors from parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.weights.checkpoints import Checkpoint

# Number of leading elements compared first, which distinguish most tensors.
_GLANCE = 16
_RUNNING_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Parameter:
    """Hold the location of a parameter: a range of elements of a flattened checkpoint tensor, and a shape.

    Attributes:
        tensor: name of the checkpoints' tensor.
        start: index of its first element in the flattened tensor.
        shape: shape of the parameter.

    Examples:
        >>> from mergeability.task_vectors import Parameter
        >>> keys = Parameter("visual.attn.in_proj_weight", start=16, shape=(4, 4))
        >>> keys.size
        16
    """

    tensor: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions and is not empty."""
        return len(self.shape) == 2 and self.size > 0

    @property
    def content(self) -> dict[str, Any]:
        """The location of the parameter in the checkpoint tensor as a JSON-compatible record, for keys of the store."""
        return {"tensor": self.tensor, "start": self.start, "shape": list(self.shape)}


def is_running_statistic(name: str) -> bool:
    """Return whether a tensor is a running mean or variance of a batch norm, which is not a parameter.

    Args:
        name: name of the tensor.

    Examples:
        >>> from mergeability.task_vectors import is_running_statistic
        >>> is_running_statistic("visual.bn1.running_mean"), is_running_statistic("visual.bn1.weight")
        (True, False)
    """
    return name.rsplit(".", 1)[-1] in _RUNNING_STATISTICS


def cut(
    parameters: Mapping[str, Parameter], *, split_qkv: bool = False, matricize: str | None = None
) -> dict[str, Parameter]:
    """Split or reshape parameters without changing their values.

    Args:
        parameters: name → parameter.
        split_qkv: make one parameter each of the queries, keys and values of an attention, which open_clip
            stores one below the other in `in_proj_weight` and `in_proj_bias`.
        matricize: "conv" makes a convolution's kernel the matrix out × (in·height·width).

    Raises:
        UserError: `matricize` is something else.
    """
    if matricize not in (None, "conv"):
        raise UserError(f"Expected matricize='conv' or null, got {matricize!r}.")
    found = {}
    for name, whole in parameters.items():
        parts = _split(name, whole) if split_qkv else {name: whole}
        for part, parameter in parts.items():
            found[part] = _as_matrix(parameter) if matricize == "conv" else parameter
    return found


def layout_digest(parameters: Mapping[str, Parameter], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return a hash of how tensors are split into parameters; None if every tensor is one parameter.

    Args:
        parameters: name → parameter.
        shapes: the checkpoints' tensor → its shape.
    """
    natural = all(
        name in shapes and one.tensor == name and one.shape == tuple(shapes[name])
        for name, one in parameters.items()
    )
    return None if natural else digest({name: one.content for name, one in parameters.items()})


def assembled(
    merged: Mapping[str, Tensor],
    parameters: Mapping[str, Parameter],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Tensor]:
    """Reassemble the tensors of the checkpoints from the parameters into which they were split.

    Args:
        merged: parameter name → tensor of the parameter's shape, for all parameters of a tensor or none.
        parameters: name → parameter.
        shapes: the checkpoints' tensor → its shape.

    Raises:
        UserError: a name is unknown, or a part of a tensor is missing.
    """
    parts: dict[str, list[str]] = {}
    for name in merged:
        if name not in parameters:
            raise UserError(f"'{name}' is not a parameter of the models.")
        parts.setdefault(parameters[name].tensor, []).append(name)
    whole = {}
    for tensor, names in parts.items():
        names.sort(key=lambda name: parameters[name].start)
        shape = tuple(shapes[tensor])
        pieces = [merged[name].flatten() for name in names]
        if sum(len(piece) for piece in pieces) != math.prod(shape):
            raise UserError(f"Parts of '{tensor}' are missing. The only given parts are: {', '.join(names)}.")
        whole[tensor] = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(shape)
    return whole


def tied_names(parameters: Mapping[str, Parameter], checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Find the parameters that equal another parameter in every checkpoint.

    Tied weights are stored separately in files, so they are identified by their values. The first elements distinguish
    most parameters, and only parameters that share them are compared completely.

    Args:
        parameters: name → parameter, in the order in which the first of several equal ones is the owner.
        checkpoints: the checkpoints to compare in; the first one decides what is compared at all.

    Returns:
        Name → the other parameter's name.
    """
    first, found = checkpoints[0], {}
    alike: dict[Any, list[str]] = {}
    for name, one in parameters.items():
        glance = tuple(_values(first, one, min(_GLANCE, one.size)).tolist())
        alike.setdefault((one.shape, glance), []).append(name)
    for names in alike.values():
        for position, name in enumerate(names):
            owner = next(
                (one for one in names[:position] if _equal(parameters[one], parameters[name], checkpoints)),
                None,
            )
            if owner is not None:
                found[name] = found.get(owner, owner)
    return found


def _equal(a: Parameter, b: Parameter, checkpoints: Sequence[Checkpoint]) -> bool:
    """Return whether two parameters of one shape hold the same values in every checkpoint."""
    return all(
        np.array_equal(_values(one, a, stop), _values(one, b, stop))
        for stop in (min(_GLANCE, a.size), a.size)
        for one in checkpoints
    )


def _values(checkpoint: Checkpoint, parameter: Parameter, stop: int) -> np.ndarray:
    return checkpoint.values(parameter.tensor, parameter.start, parameter.start + stop)


def _split(name: str, whole: Parameter) -> dict[str, Parameter]:
    """Split a fused attention projection into queries, keys and values."""
    stem, _, last = name.rpartition(".")
    if last not in ("in_proj_weight", "in_proj_bias") or whole.shape[0] % 3:
        return {name: whole}
    shape = (whole.shape[0] // 3, *whole.shape[1:])
    kind = last.removeprefix("in_proj_")
    return {
        f"{stem}.{part}_proj_{kind}": Parameter(
            whole.tensor, whole.start + position * math.prod(shape), shape
        )
        for position, part in enumerate("qkv")
    }


def _as_matrix(parameter: Parameter) -> Parameter:
    if len(parameter.shape) != 4:
        return parameter
    rows = parameter.shape[0]
    return Parameter(parameter.tensor, parameter.start, (rows, math.prod(parameter.shape[1:])))
