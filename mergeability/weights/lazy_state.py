"""State dicts whose tensors are computed on access, and a function that writes them one tensor at a time."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mergeability.progress import Progress, no_progress
from mergeability.threads import one_openmp_thread
from mergeability.weights.safetensors_file import as_bytes

# A safetensors header is padded with spaces to a multiple of this.
_ALIGNMENT = 8


class LazyState(Mapping[str, Tensor]):
    """A state dict with known shapes and dtypes, whose tensors are computed on each access.

    Attributes:
        shapes: tensor name → shape.
        dtypes: tensor name → dtype.
        one_thread: whether tensors are computed by operations that threads of PyTorch slow down.

    Examples:
        >>> import torch
        >>> from mergeability.weights.lazy_state import LazyState
        >>> state = LazyState({"weight": (2,)}, {"weight": torch.float32}, lambda name: torch.ones(2))
        >>> state["weight"], state.shapes
        (tensor([1., 1.]), {'weight': (2,)})
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        read: Callable[[str], Tensor],
        *,
        one_thread: bool = True,
    ) -> None:
        """Name the tensors.

        Args:
            shapes: tensor name → shape.
            dtypes: tensor name → dtype.
            read: computes the tensor of a name.
            one_thread: whether threads of PyTorch slow down `read`.
        """
        self.one_thread = one_thread
        self.shapes, self.dtypes = dict(shapes), {name: dtypes[name] for name in shapes}
        self._read = read

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "LazyState":
        """Convert a state dict to a lazy state dict."""
        if isinstance(state, LazyState):
            return state
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return cls(shapes, {name: tensor.dtype for name, tensor in state.items()}, state.__getitem__)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_state(
    path: Path, state: LazyState, metadata: Mapping[str, str], progress: Progress = no_progress
) -> str:
    """Write a safetensors file one tensor at a time; it is byte-identical to one that `safetensors` writes.

    Args:
        path: the file.
        state: the tensors; at most two of them are in memory.
        metadata: text for the header.
        progress: wraps the loop over tensors.

    Returns:
        The SHA-256 of the file.

    Raises:
        OSError: the disk is full, or another failure of the system.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability import checkpoints
        >>> from mergeability.weights.lazy_state import LazyState, write_state
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     sha256 = write_state(path, LazyState.of({"weight": torch.ones(2)}), {"format": "pt"})
        ...     print(sha256 == checkpoints.file_hash(path), checkpoints.load(path))
        True {'weight': tensor([1., 1.])}
    """
    header = _header(state, metadata)
    hasher = hashlib.sha256(header)
    # A tensor is hashed and written while the next one is computed; both release Python's lock.
    threads = one_openmp_thread() if state.one_thread else contextlib.nullcontext()
    with threads, path.open("wb", buffering=0) as file, ThreadPoolExecutor(2) as pool:
        _write(file.write, np.frombuffer(header, np.uint8))
        running: list[Future[None]] = []
        names = [name for name in json.loads(header[8:]) if name != "__metadata__"]
        for name in progress(names, "writing tensors", len(names)):
            data = as_bytes(state[name])
            for one in running:
                one.result()
            running = [pool.submit(hasher.update, data.data), pool.submit(_write, file.write, data)]
        for one in running:
            one.result()
    return hasher.hexdigest()


def _header(state: LazyState, metadata: Mapping[str, str]) -> bytes:
    """Return the length and the header, with the tensors in the order of the library."""
    # The library decides on the order and the names of dtypes, given tensors without elements.
    empty = {name: torch.empty(0, dtype=dtype) for name, dtype in state.dtypes.items()}
    found = safetensors.torch.save(empty, metadata=dict(metadata))
    header = json.loads(found[8 : 8 + int.from_bytes(found[:8], "little")])
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, shape = end, state.shapes[name]
        end += int(np.prod(shape, dtype=np.int64)) * state.dtypes[name].itemsize
        entry["shape"], entry["data_offsets"] = list(shape), [begin, end]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(write: Callable[[memoryview], int | None], data: np.ndarray) -> None:
    """Write all bytes: one system call may write less than was asked for."""
    view, done = data.data, 0
    while done < len(data):
        done += write(view[done:]) or 0
