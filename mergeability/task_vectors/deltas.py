"""Read the differences between the checkpoints of several models and their base."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.store import Store
from mergeability.task_vectors.differences import BLOCK, BlockWork, Differences, Result
from mergeability.task_vectors.parameters import Parameter, is_running_statistic, layout_digest
from mergeability.task_vectors.transforms import Transform, TransformByPart
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.names import VISUAL

# Values derived from the models and the layout, computed once.
_DERIVED = ("names", "buffers", "matrices", "layout", "tied")

_Kind = TypeVar("_Kind", bound="Deltas")


class Deltas(Mapping[str, Tensor]):
    """Map parameter names to the stacked deltas θ_t − θ_0 of several models; the deltas are read on demand.

    Attributes:
        tasks: names of the models.
        parameters: parameter (and buffer) name → its place in the checkpoints.
        hashes: task → hash of the model.
        base_hash: hash of the base.
        store: store of values derived from the deltas.
        selection: a digest of the selected tensors; None for the default selection.
    """

    def __init__(
        self,
        differences: Differences,
        hashes: Mapping[str, str],
        base_hash: str,
        *,
        store: Store,
        keep_below: int,
    ) -> None:
        self._differences, base = differences, differences.base
        self.hashes, self.base_hash, self.store = dict(hashes), base_hash, store
        usual = base.towers == VISUAL and self.parameters.keys() == set(base.floating)
        self.selection = None if usual else digest(sorted(self.parameters))
        self._transform: Transform | None = None
        size = sum(one.size for one in self.parameters.values()) * 4 * len(self.tasks)
        # (hash, parameter) → delta, if all of them are small enough to stay in memory
        self._kept: dict[tuple[str, str], Tensor] | None = {} if size <= keep_below else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self._differences.models)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The place of each parameter and buffer in the checkpoints, by name."""
        return self._differences.parameters

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sorted names of the floating-point parameters, without running statistics of batch norms."""
        return tuple(sorted(name for name in self.parameters if not is_running_statistic(name)))

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """The sorted names of the running statistics of batch norms."""
        return tuple(sorted(name for name in self.parameters if is_running_statistic(name)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter and buffer, by name."""
        return {name: one.shape for name, one in self.parameters.items()}

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """The sorted names of the non-empty 2-D parameters."""
        return tuple(name for name in self.names if self.parameters[name].is_matrix)

    @cached_property
    def layout(self) -> str | None:
        """A hash of how tensors are split into parameters; None if every tensor is one parameter."""
        return layout_digest(self.parameters, self.base_checkpoint.shapes) or self.selection

    @property
    def splits_tensors(self) -> bool:
        """Whether a parameter is only a part of a tensor, or has another shape or name."""
        return layout_digest(self.parameters, self.base_checkpoint.shapes) is not None

    @property
    def is_transformed(self) -> bool:
        """Whether deltas are transformed when they are read; if so, each read loads a whole tensor."""
        return self._transform is not None

    @property
    def base_checkpoint(self) -> Checkpoint:
        """The checkpoint of the base model, opened for reading."""
        return self._differences.base

    def __getitem__(self, name: str) -> Float[Tensor, "T *shape"]:
        """Read the deltas of one parameter for all models, in float32; the caller may modify the result.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        if self._kept is not None or self._transform is not None:
            return torch.stack(list(self._read_all(name, self.tasks)))
        return self._differences.stack(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    # Compare by identity, because Mapping compares values, which would read every tensor.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def model(self, task: str) -> Checkpoint:
        """Return the checkpoint of one fine-tuned model, opened for reading."""
        return self._differences.models[task]

    def identity(self, task: str) -> str:
        """Return an identifier of one model's deltas, for keys of the store."""
        return self.hashes[task] if self._transform is None else f"{self.hashes[task]} {task}"

    def base(self, name: str) -> Tensor:
        """Read one parameter of the base, in its original dtype."""
        return self._differences.of_base(name)

    def map_blocks(self, name: str, work: BlockWork[Result], length: int | None = None) -> Iterator[Result]:
        """Apply a function to blocks of the base and of the deltas of all models, for one flattened parameter.

        Args:
            name: the parameter.
            work: called with the range in the flattened parameter, that range of the base and the deltas, in float32,
                whose memory is used again afterwards. Several threads may call it at a time.
            length: number of elements of every model in a block; 2¹⁸ when None. Whole tensors are read if deltas are
                kept in memory, or if an adapter, a transposed layout or a transform rules out reading parts.

        Yields:
            The results, in the order of the blocks.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        length = BLOCK if length is None else length
        transform = None if is_running_statistic(name) else self._transform
        by_part = None
        if isinstance(transform, TransformByPart) and self._differences.is_whole(name):
            by_part = transform.by_part
        readable = (transform is None or by_part is not None) and self._differences.reads_parts(name)
        if self._kept is not None or not readable:
            rows, base = self[name].reshape(len(self.tasks), -1), self.base(name).float().reshape(-1)
            for start in range(0, len(base), length):
                part = slice(start, start + length)
                yield work(part, base[part], rows[:, part])
            return
        transforms = None if by_part is None else [by_part(task, name) for task in self.tasks]
        yield from self._differences.map_blocks(name, length, transforms, work)

    def each(self, name: str) -> Iterator[Float[Tensor, " *shape"]]:
        """Read one parameter's deltas in float32, one model after the other.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        return self._read_all(name, self.tasks)

    def delta(self, task: str, name: str) -> Float[Tensor, " *shape"]:
        """Read the delta of one parameter for one model, in float32.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        return next(self._read_all(name, (task,)))

    def read(
        self,
        task: str,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        room: Float32[np.ndarray, " at_least_elements"] | None = None,
        base: Float32[np.ndarray, " elements"] | None = None,
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of one model's flattened delta, in float32, without reading the rest of the tensor.

        Values that are not finite are returned unchanged: sums of squares detect them in one pass over the data
        instead of two.

        Args:
            task: the model.
            name: the parameter.
            start: the first element.
            stop: the element after the last; the parameter's end when None.
            room: memory of which the result is a part; new memory when None.
            base: the same range of the base, as `read_base` returns it; read when None.
        """
        stop = self.parameters[name].size if stop is None else stop
        if self._transform is not None:
            return self.delta(task, name).flatten()[start:stop].numpy()
        return self._differences.part(task, name, start, stop, room=room, base=base)

    def read_base(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        room: Float32[np.ndarray, " at_least_elements"] | None = None,
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of a flattened base parameter, in float32; `room` is a buffer for the values, as in `read`."""
        stop = self.parameters[name].size if stop is None else stop
        return self._differences.part_of_base(name, start, stop, room=room)

    def not_finite(self, task: str, name: str) -> UserError:
        """Return the exception for a non-finite delta; the message says whether the model or the base is the cause."""
        return self._differences.not_finite(task, name)

    def untransformed(self) -> "Deltas":
        """Return the untransformed deltas of the models."""
        plain = copy.copy(self)
        plain._transform = None
        return plain

    def _with(self: "_Kind", **changed: Mapping[str, Any]) -> "_Kind":
        """Return a copy with other `models` or `parameters`."""
        copied = copy.copy(self)
        for name in _DERIVED:
            copied.__dict__.pop(name, None)
        copied._differences = replace(self._differences, **changed)
        return copied

    def _read_all(self, name: str, tasks: Sequence[str]) -> Iterator[Tensor]:
        """Yield one parameter's deltas, model by model; the base's values are read once."""
        if self._transform is not None and not is_running_statistic(name):
            yield from self._transformed(name, tasks, self._transform)
            return
        base = None
        for task in tasks:
            delta = None if self._kept is None else self._kept.get((self.hashes[task], name))
            if delta is None:
                base = self.base(name).float() if base is None else base
                delta = self._differences.whole(task, name, base)
                if self._kept is not None:
                    self._kept[self.hashes[task], name] = delta
            yield delta

    def _transformed(self, name: str, tasks: Sequence[str], transform: Transform) -> Iterator[Tensor]:
        """Transform the whole checkpoint tensor and then split it, so that results do not depend on the layout."""
        parameter, checkpoint = self.parameters[name], self.base_checkpoint
        shape = tuple(checkpoint.shapes[parameter.tensor])
        plain = self.untransformed()._with(
            parameters={parameter.tensor: Parameter(parameter.tensor, 0, shape)}
        )
        if shape != parameter.shape and self._kept is not None:
            plain._kept = {}
        for task, delta in zip(tasks, plain._read_all(parameter.tensor, tasks), strict=True):
            changed = transform(task, parameter.tensor, delta).flatten()
            yield changed[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)
