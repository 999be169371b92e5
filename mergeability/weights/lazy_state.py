"""State dicts whose tensors are computed on access, and a function that writes them one tensor or part at a time."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mergeability.progress import Progress, no_progress
from mergeability.threads import one_openmp_thread
from mergeability.weights.safetensors_file import as_bytes

# A safetensors header is padded with spaces to a multiple of this.
_ALIGNMENT = 8

# Applies a function to the consecutive parts of a flattened tensor, and returns the results in order. The function is
# called with the place of a part's first element and the part, by several threads at a time.
Parts = Callable[[Callable[[int, Tensor], Any]], Iterator[Any]]


class LazyState(Mapping[str, Tensor]):
    """A state dict with known shapes and dtypes, whose tensors are computed on each access.

    Attributes:
        shapes: tensor name → shape.
        dtypes: tensor name → dtype.
        parts: tensor name → its parts, for tensors that can be computed part by part.
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
        parts: Mapping[str, Parts] | None = None,
        one_thread: bool = True,
    ) -> None:
        """Name the tensors.

        Args:
            shapes: tensor name → shape.
            dtypes: tensor name → dtype.
            read: computes the tensor of a name.
            parts: tensor name → its parts, for tensors that can be computed part by part.
            one_thread: whether threads of PyTorch slow down `read`.
        """
        self.one_thread = one_thread
        self.shapes, self.dtypes = dict(shapes), {name: dtypes[name] for name in shapes}
        self.parts = dict(parts or {})
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
    """Write a safetensors file one tensor at a time, or one part of a tensor at a time.

    The file is byte-identical to one that `safetensors` writes.

    Args:
        path: the file.
        state: the tensors; at most two of them are in memory, and of those with parts, only a few parts.
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
    path.write_bytes(header)
    names = [name for name in json.loads(header[8:]) if name != "__metadata__"]
    threads = one_openmp_thread() if state.one_thread else contextlib.nullcontext()
    with threads, ThreadPoolExecutor(2) as pool:
        offset, running = len(header), list[Future[Any]]()
        for name in progress(names, "writing tensors", len(names)):
            if name in state.parts:
                _finish(running)
                # A part is written by the thread that has computed it, while it is in the processor's cache.
                for part in state.parts[name](partial(_write_part, path, offset)):
                    hasher.update(part.data)
            else:
                # A tensor is hashed and written while the next one is computed; both release Python's lock.
                data = as_bytes(state[name])
                _finish(running)
                running += [pool.submit(hasher.update, data.data), pool.submit(_write, path, offset, data)]
            offset += _bytes(state, name)
        _finish(running)
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
        begin = end
        end += _bytes(state, name)
        entry["shape"], entry["data_offsets"] = list(state.shapes[name]), [begin, end]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(state: LazyState, name: str) -> int:
    return math.prod(state.shapes[name]) * state.dtypes[name].itemsize


def _finish(running: list[Future[Any]]) -> None:
    """Wait until everything is done, and forget it."""
    while running:
        running.pop(0).result()


def _write_part(path: Path, offset: int, first: int, values: Tensor) -> np.ndarray:
    """Write a part of a tensor whose data begins at an offset of the file, and return the part's bytes."""
    data = as_bytes(values)
    _write(path, offset + first * values.itemsize, data)
    return data


def _write(path: Path, offset: int, data: np.ndarray) -> None:
    """Write bytes at an offset of a file, by a handle of this call: concurrent threads would move a shared position."""
    view, done = data.data, 0
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        # One system call may write less than was asked for.
        while done < len(data):
            done += file.write(view[done:]) or 0
