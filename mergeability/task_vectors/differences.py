"""Read and subtract the tensors of checkpoints, whole or block by block."""

import math
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mergeability.context import cores
from mergeability.errors import UserError
from mergeability.task_vectors.parameters import Parameter
from mergeability.threads import openmp_limiter
from mergeability.weights.checkpoints import Checkpoint

# Number of elements of every model in a block: 1 MiB. A multiple of 32, so that sums
# over models add in the order that PyTorch uses for whole tensors.
BLOCK = 2**18

# From so many elements of all models on, the blocks of a parameter are read in several threads.
_WORTH_THREADS = 2**20

# Number of elements transformed at a time: PyTorch starts no further threads for so few.
_PIECE = 2**14

# Bytes of all blocks that are in memory at once, unless one block of all models has more.
_MEMORY = 2**26

Result = TypeVar("Result")

# Changes one block of a model's difference.
BlockTransform = Callable[[Tensor], Tensor]

# Uses a block: its range in the flattened parameter, the base's elements, and the differences, T × elements.
BlockWork = Callable[[slice, Tensor, Tensor], Result]


@dataclass(frozen=True)
class Differences:
    """Read the differences θ_t − θ_0 between models and their base in float32; nothing is kept in memory.

    Attributes:
        base: the checkpoint of the base.
        models: task → checkpoint of the fine-tuned model.
        parameters: parameter (and buffer) name → its place in the checkpoints.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability import checkpoints
        >>> from mergeability.task_vectors.differences import Differences
        >>> with TemporaryDirectory() as folder:
        ...     base = checkpoints.save(Path(folder) / "base.safetensors", {"weight": torch.tensor([5.0, 5.0])})
        ...     cars = checkpoints.save(Path(folder) / "cars.safetensors", {"weight": torch.tensor([6.0, 5.0])})
        ...     opened = [checkpoints.Checkpoint.open(path) for path in (base, cars)]
        ...     Differences.between(opened[0], {"cars": opened[1]}).whole("cars", "weight")
        tensor([1., 0.])
    """

    base: Checkpoint
    models: Mapping[str, Checkpoint]
    parameters: Mapping[str, Parameter]

    @classmethod
    def between(
        cls, base: Checkpoint, models: Mapping[str, Checkpoint], names: Sequence[str] | None = None
    ) -> "Differences":
        """Return the differences of the named tensors; of all floating-point tensors when None."""
        chosen = base.floating if names is None else names
        return cls(
            base, dict(models), {name: Parameter(name, 0, tuple(base.shapes[name])) for name in chosen}
        )

    def of_base(self, name: str) -> Tensor:
        """Read one parameter of the base, in its original dtype."""
        return self._part(self.base, name)

    def whole(self, task: str, name: str, base: Tensor | None = None) -> Float[Tensor, " *shape"]:
        """Read the difference of one parameter for one model; `base` is the base's parameter in float32, if known.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        base = self.of_base(name).float() if base is None else base
        return self._checked(self._part(self.models[task], name).float() - base, task, name)

    def stack(self, name: str) -> Float[Tensor, "T *shape"]:
        """Read the differences of one parameter for all models, without copying them.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        base = self.of_base(name).float()
        stacked = torch.empty((len(self.models), *base.shape))
        for row, task in zip(stacked, self.models, strict=True):
            torch.sub(self._part(self.models[task], name).float(), base, out=row)
            self._checked(row, task, name)
        return stacked

    def part(
        self,
        task: str,
        name: str,
        start: int,
        stop: int,
        *,
        room: Float32[np.ndarray, " at_least_elements"] | None = None,
        base: Float32[np.ndarray, " elements"] | None = None,
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of one model's flattened difference, with non-finite values as they are.

        Args:
            task: the model.
            name: the parameter.
            start: the first element.
            stop: the element after the last.
            room: memory of which the result is a part; new memory when None.
            base: the same range of the base, as `part_of_base` returns it; read when None.
        """
        parameter = self.parameters[name]
        delta = np.empty(stop - start, dtype=np.float32) if room is None else room[: stop - start]
        base = self.part_of_base(name, start, stop) if base is None else base
        # Suppress warnings such as ∞ − ∞, because callers check for non-finite values.
        with np.errstate(invalid="ignore", over="ignore"):
            self.models[task].fill(parameter.tensor, parameter.start + start, delta)
            np.subtract(delta, base, out=delta)
        return delta

    def part_of_base(
        self,
        name: str,
        start: int,
        stop: int,
        *,
        room: Float32[np.ndarray, " at_least_elements"] | None = None,
    ) -> Float32[np.ndarray, " elements"]:
        """Read a range of a flattened parameter of the base; `room` is a buffer for the values, as in `part`."""
        parameter = self.parameters[name]
        values = np.empty(stop - start, dtype=np.float32) if room is None else room[: stop - start]
        self.base.fill(parameter.tensor, parameter.start + start, values)
        return values

    def reads_parts(self, name: str) -> bool:
        """Whether a part of this parameter can be read from every checkpoint without reading the whole tensor."""
        tensor = self.parameters[name].tensor
        return all(one.reads_parts(tensor) for one in (self.base, *self.models.values()))

    def is_whole(self, name: str) -> bool:
        """Whether the parameter is a whole tensor of the checkpoints."""
        parameter = self.parameters[name]
        return parameter.size == math.prod(self.base.shapes[parameter.tensor])

    def map_blocks(
        self, name: str, length: int, transforms: Sequence[BlockTransform] | None, work: BlockWork[Result]
    ) -> Iterator[Result]:
        """Apply a function to the blocks of one flattened parameter of all models.

        Threads share the blocks of a large parameter, and several may call `work` at a time. With transforms, which
        depend on earlier blocks, and with so many models that too few blocks fit into memory, threads share the models
        of one block instead, and `work` is called in the calling thread.

        Args:
            name: a parameter that `reads_parts`.
            length: number of elements of every model in a block.
            transforms: one per model, applied to its consecutive blocks; None for no transform.
            work: called with the range in the flattened parameter, that range of the base, and the differences, whose
                memory is used again afterwards.

        Yields:
            The results, in the order of the blocks.

        Raises:
            UserError: a value is NaN or infinite, naming the model and the tensor.
        """
        size, models = self.parameters[name].size, len(self.models)
        if not size:
            return
        length = min(length, size)
        threads = cores() if size * models >= _WORTH_THREADS else 1
        blocks = min(threads, _MEMORY // (4 * (models + 1) * length)) if transforms is None else 1
        # Fewer threads than share the models of one block would be no gain.
        blocks = 1 if blocks < min(threads, models) else blocks
        # The same memory for all blocks, because new memory takes several times as long as reading.
        rooms: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(blocks):
            rooms.put(np.empty((models + 1, length), dtype=np.float32))

        def use(start: int) -> Result:
            room = rooms.get()
            try:
                block = room[:, : size - start]
                self.part_of_base(name, start, start + block.shape[1], room=block[0])
                read = partial(self._read_block, name, start, block, transforms)
                deque(over_models(read, range(models)), maxlen=0)
                rows = torch.from_numpy(block)
                return work(slice(start, start + block.shape[1]), rows[0], rows[1:])
            finally:
                rooms.put(room)

        with ThreadPoolExecutor(threads, initializer=openmp_limiter()) as pool:
            over_blocks = partial(_ahead, pool, 2 * blocks) if blocks > 1 else map
            over_models = pool.map if threads > blocks == 1 else map
            yield from over_blocks(use, range(0, size, length))

    def not_finite(self, task: str, name: str) -> UserError:
        """Return the exception for a non-finite value; the message says whether the model or the base is the cause."""
        try:
            self._check_finite(task, name)
        except UserError as error:
            return error
        return _beyond_range(task, name)

    def _read_block(
        self,
        name: str,
        start: int,
        block: Float32[np.ndarray, "rows elements"],
        transforms: Sequence[BlockTransform] | None,
        place: int,
    ) -> None:
        """Read a block of one model, whose row follows the base's and those of the models before it."""
        task, base, row = tuple(self.models)[place], block[0], block[place + 1]
        self.part(task, name, start, start + len(row), room=row, base=base)
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(row.sum())
        if not finite:
            self._check_finite(task, name)
        if transforms is not None:
            for piece in torch.from_numpy(row).split(_PIECE):
                piece.copy_(transforms[place](piece))

    def _part(self, checkpoint: Checkpoint, name: str) -> Tensor:
        parameter = self.parameters[name]
        tensor = checkpoint.tensor(parameter.tensor)
        if tuple(tensor.shape) == parameter.shape:
            return tensor
        return tensor.flatten()[parameter.start : parameter.start + parameter.size].reshape(parameter.shape)

    def _checked(self, delta: Tensor, task: str, name: str) -> Tensor:
        # A sum is much faster than testing each value.
        if not torch.isfinite(delta.sum()):
            self._check_finite(task, name)
        return delta

    def _check_finite(self, task: str, name: str) -> None:
        """Raise an error for NaN and infinity; each value is checked, because sums of finite numbers may overflow."""
        base = _finite(self.of_base(name).float(), "base model", name)
        model = _finite(self._part(self.models[task], name).float(), f"model of '{task}'", name)
        if not torch.isfinite(model - base).all():
            raise _beyond_range(task, name)


def _ahead(
    pool: Executor, most: int, function: Callable[[int], Result], items: Iterable[int]
) -> Iterator[Result]:
    """Map in threads, in order, so that at most `most` results wait for the caller to take them."""
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(running) == most:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
    finally:
        for one in running:
            one.cancel()


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
