"""Read the differences between the checkpoints of several models and their base."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mergeability.context import cores
from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.store import Store
from mergeability.task_vectors.parameters import Parameter, is_running_statistic, layout_digest
from mergeability.task_vectors.transforms import Transform, TransformByPart
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.names import VISUAL

# Number of elements of every model that `Deltas.blocks` reads at a time: 1 MiB. A multiple of 32, so that sums over
# models add in the order that PyTorch uses for whole tensors.
BLOCK = 2**18

# From so many elements on, the models' blocks of a parameter are read in several threads.
_WORTH_THREADS = 2**20

# Number of elements transformed at a time: PyTorch starts no further threads for so few.
_PIECE = 2**14

# Values derived from the models and the layout, computed once.
_DERIVED = ("names", "buffers", "matrices", "layout", "tied")


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
        base: Checkpoint,
        models: Mapping[str, Checkpoint],
        hashes: Mapping[str, str],
        base_hash: str,
        *,
        store: Store,
        keep_below: int,
        names: Sequence[str] | None = None,
    ) -> None:
        floating = [name for name in base.names if base.dtypes[name].is_floating_point]
        usual = base.towers == VISUAL and (names is None or set(names) == set(floating))
        floating = floating if names is None else list(names)
        self.selection = None if usual else digest(sorted(floating))
        self.tasks: tuple[str, ...] = tuple(models)
        self.parameters = {name: Parameter(name, 0, tuple(base.shapes[name])) for name in floating}
        self.hashes, self.base_hash, self.store = dict(hashes), base_hash, store
        self._base, self._models = base, dict(models)
        self._transform: Transform | None = None
        size = sum(one.size for one in self.parameters.values()) * 4 * len(models)
        # (hash, parameter) → delta, if all of them are small enough to stay in memory
        self._kept: dict[tuple[str, str], Tensor] | None = {} if size <= keep_below else None

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
        return tuple(
            name
            for name in self.names
            if len(self.parameters[name].shape) == 2 and self.parameters[name].size
        )

    @cached_property
    def layout(self) -> str | None:
        """A hash of how tensors are split into parameters; None if every tensor is one parameter."""
        return layout_digest(self.parameters, self._base.shapes) or self.selection

    @property
    def splits_tensors(self) -> bool:
        """Whether a parameter is only a part of a tensor, or has another shape or name."""
        return layout_digest(self.parameters, self._base.shapes) is not None

    @property
    def is_transformed(self) -> bool:
        """Whether deltas are transformed when they are read; if so, each read loads a whole tensor."""
        return self._transform is not None

    @property
    def base_checkpoint(self) -> Checkpoint:
        """The checkpoint of the base model, opened for reading."""
        return self._base

    def __getitem__(self, name: str) -> Tensor:
        return self.stack(name)

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
        return self._models[task]

    def identity(self, task: str) -> str:
        """Return an identifier of one model's deltas, for keys of the store."""
        return self.hashes[task] if self._transform is None else f"{self.hashes[task]} {task}"

    def base(self, name: str) -> Tensor:
        """Read one parameter of the base, in its original dtype."""
        return self._part(self._base, name)

    def stack(self, name: str) -> Float[Tensor, "T *shape"]:
        """Read the deltas of one parameter for all models, in float32; the caller may modify the result.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        if self._kept is not None or self._transform is not None:
            return torch.stack(list(self._read_all(name, self.tasks)))
        # Write directly into the stack, without copying deltas.
        base = self.base(name).float()
        stacked = torch.empty((len(self.tasks), *base.shape))
        for row, task in zip(stacked, self.tasks, strict=True):
            torch.sub(self._part(self._models[task], name).float(), base, out=row)
            if not torch.isfinite(row.sum()):
                self._check_finite(task, name)
        return stacked

    def blocks(
        self, name: str, length: int | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "T elements"]]]:
        """Read the deltas of all models for one flattened parameter, in float32 and in blocks.

        Args:
            name: the parameter.
            length: number of elements of every model that are in memory; 2¹⁸ when None. Whole tensors are read if
                deltas are kept in memory, or if an adapter, a transposed layout or a transform rules out reading parts.

        Yields:
            The range in the flattened parameter, and the block; valid until the next one is requested.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        for part, _, rows in self.blocks_with_base(name, length):
            yield part, rows

    def blocks_with_base(
        self, name: str, length: int | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, " elements"], Float[Tensor, "T elements"]]]:
        """Read blocks as `blocks` does, with the same range of the base in float32 before the deltas."""
        parameter = self.parameters[name]
        length = BLOCK if length is None else length
        transform = None if is_running_statistic(name) else self._transform
        if self._kept is not None or not self._reads_parts(parameter, transform):
            rows, base = self.stack(name).reshape(len(self.tasks), -1), self.base(name).float().reshape(-1)
            for start in range(0, parameter.size, length):
                part = slice(start, start + length)
                yield part, base[part], rows[:, part]
            return
        parts = [
            transform.by_part(task, name) if isinstance(transform, TransformByPart) else None
            for task in self.tasks
        ]
        # The same memory for all blocks, because new memory takes several times as long as reading.
        room = np.empty((len(self.tasks) + 1, min(length, parameter.size)), dtype=np.float32)
        threads = min(cores(), len(self.tasks)) if parameter.size * len(self.tasks) >= _WORTH_THREADS else 1
        groups = [range(first, len(self.tasks), threads) for first in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, parameter.size, length):
                stop = min(start + length, parameter.size)
                base, *rows = room[:, : stop - start]
                self._base.fill(parameter.tensor, parameter.start + start, base)
                read = partial(self._read_block, name, start, base, rows, parts)
                list(map(read, groups) if threads == 1 else pool.map(read, groups))
                block = torch.from_numpy(room[:, : stop - start])
                yield slice(start, stop), block[0], block[1:]

    def _read_block(
        self,
        name: str,
        start: int,
        base: np.ndarray,
        rows: Sequence[np.ndarray],
        transforms: Sequence[Callable[[Tensor], Tensor] | None],
        places: range,
    ) -> None:
        """Read a block of the deltas of some models and transform it, in one thread, as NumPy's operations do."""
        parameter = self.parameters[name]
        for place in places:
            task, row, transform = self.tasks[place], rows[place], transforms[place]
            self._models[task].fill(parameter.tensor, parameter.start + start, row)
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(row, base, out=row)
                finite = np.isfinite(row.sum())
            if not finite:
                self._check_finite(task, name)
            if transform is not None:
                for piece in torch.from_numpy(row).split(_PIECE):
                    piece.copy_(transform(piece))

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
        parameter = self.parameters[name]
        stop = parameter.size if stop is None else stop
        if self._transform is not None:
            return self.delta(task, name).flatten()[start:stop].numpy()
        first = parameter.start + start
        delta = np.empty(stop - start, dtype=np.float32) if room is None else room[: stop - start]
        base = self.read_base(name, start, stop) if base is None else base
        # Suppress warnings such as ∞ − ∞, because callers check for non-finite values.
        with np.errstate(invalid="ignore", over="ignore"):
            self._models[task].fill(parameter.tensor, first, delta)
            np.subtract(delta, base, out=delta)
        return delta

    def read_base(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        room: Float32[np.ndarray, " at_least_elements"] | None = None,
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of a flattened base parameter, in float32; `room` is a buffer for the values, as in `read`."""
        parameter = self.parameters[name]
        stop = parameter.size if stop is None else stop
        values = np.empty(stop - start, dtype=np.float32) if room is None else room[: stop - start]
        self._base.fill(parameter.tensor, parameter.start + start, values)
        return values

    def not_finite(self, task: str, name: str) -> UserError:
        """Return the exception for a non-finite delta; the message says whether the model or the base is the cause."""
        try:
            self.delta(task, name)
        except UserError as error:
            return error
        return _beyond_range(task, name)

    def untransformed(self) -> "Deltas":
        """Return the untransformed deltas of the models."""
        plain = copy.copy(self)
        plain._transform = None
        return plain

    def _forget_derived(self) -> None:
        """Copy with other models or parameters."""
        for name in _DERIVED:
            self.__dict__.pop(name, None)

    def _reads_parts(self, parameter: Parameter, transform: Transform | None) -> bool:
        whole = parameter.size == math.prod(self._base.shapes[parameter.tensor])
        if transform is not None and not (whole and isinstance(transform, TransformByPart)):
            return False
        models = (self._models[task] for task in self.tasks)
        return all(one.reads_parts(parameter.tensor) for one in (self._base, *models))

    def _part(self, checkpoint: Checkpoint, name: str) -> Tensor:
        parameter = self.parameters[name]
        tensor = checkpoint.tensor(parameter.tensor)
        if tuple(tensor.shape) == parameter.shape:
            return tensor
        return tensor.flatten()[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)

    def _read_all(self, name: str, tasks: Sequence[str]) -> Iterator[Tensor]:
        """Yield one parameter's deltas, model by model; the base's values are read once."""
        if self._transform is not None and not is_running_statistic(name):
            yield from self._transformed(name, tasks, self._transform)
            return
        base = None
        for task in tasks:
            delta = None if self._kept is None else self._kept.get((self.hashes[task], name))
            if delta is None:
                if base is None:
                    base = self.base(name).float()
                delta = self._part(self._models[task], name).float() - base
                # A sum is much faster than testing each value.
                if not torch.isfinite(delta.sum()):
                    self._check_finite(task, name)
                if self._kept is not None:
                    self._kept[self.hashes[task], name] = delta
            yield delta

    def _transformed(self, name: str, tasks: Sequence[str], transform: Transform) -> Iterator[Tensor]:
        """Transform the whole checkpoint tensor and then split it, so that results do not depend on the layout."""
        parameter = self.parameters[name]
        plain = self.untransformed()
        plain._forget_derived()
        shape = tuple(self._base.shapes[parameter.tensor])
        plain.parameters = {parameter.tensor: Parameter(parameter.tensor, 0, shape)}
        if shape != parameter.shape and self._kept is not None:
            plain._kept = {}
        for task, delta in zip(tasks, plain._read_all(parameter.tensor, tasks), strict=True):
            changed = transform(task, parameter.tensor, delta).flatten()
            yield changed[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)

    def _check_finite(self, task: str, name: str) -> None:
        """Raise an error for NaN and infinity; each value is checked, because sums of finite numbers may overflow."""
        base = _finite(self.base(name).float(), "base model", name)
        model = _finite(self._part(self._models[task], name).float(), f"model of '{task}'", name)
        if not torch.isfinite(model - base).all():
            raise _beyond_range(task, name)


def _finite(tensor: Tensor, owner: str, name: str) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"Expected finite weights, but '{name}' of the {owner} contains NaN or infinite values. Train or"
            " export the model again."
        )
    return tensor


def _beyond_range(task: str, name: str) -> UserError:
    return UserError(
        f"The change of '{name}' in the model of '{task}' is too large for float32. Give the base from which"
        " the model was fine-tuned."
    )
