"""Read parts of a safetensors file without keeping the file in memory.

A memory map keeps every accessed page resident while it is open, so a process that reads
twenty models would keep all of them in memory. Here each piece is read by position into memory of the caller.
"""

import contextlib
import io
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.recognition import SAFETENSORS, recognised

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# NumPy dtypes of tensors; narrower ones are widened while they are read.
_NUMPY = {torch.float64: np.float64, torch.float32: np.float32}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write named tensors to a safetensors file.

    Args:
        tensors: name → contiguous tensor; no two share memory.
        path: the file.
        metadata: text for the header.

    Raises:
        OSError: the disk is full, or another failure of the system, which the library reports as its own error.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability.weights.safetensors_file import TensorFile, write_tensors
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     write_tensors({"weight": torch.ones(2)}, path, {"format": "pt"})
        ...     print(TensorFile(path).tensor("weight"))
        tensor([1., 1.])
    """
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata=dict(metadata))
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


# Number of elements of two bytes that are read at a time: 512 KiB.
_NARROW = 2**18
# Number of elements converted at a time by PyTorch, which starts no further threads for so few.
_PIECE = 2**14
# Each thread's memory for them: new memory takes several times as long as reading.
_memory = threading.local()

# Space reserved for the header, which is written last and padded with spaces, as in safetensors.
_HEADER = 4096


def write_rows(
    path: Path,
    name: str,
    rows: Iterable[Tensor],
    others: Callable[[], Mapping[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write one large tensor of bytes to a safetensors file, part by part; only one part is in memory at a time.

    Args:
        path: the file.
        name: name of that tensor.
        rows: the parts of that tensor, in uint8, with the same shape except for the first dimension.
        others: returns the other tensors; called after the last part.
        metadata: for the header.

    Raises:
        OSError: the disk is full, or another failure of the system.
        UserError: there are no parts, or the header is longer than its room.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability.weights.safetensors_file import TensorFile, write_rows
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "images.safetensors"
        ...     rows = (torch.full((2, 3), value, dtype=torch.uint8) for value in (1, 2))
        ...     write_rows(path, "images", rows, lambda: {"labels": torch.arange(4)}, {"format": "pt"})
        ...     print(sorted(TensorFile(path).entries), tuple(TensorFile(path).tensor("images").shape))
        ['images', 'labels'] (4, 3)
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    count, shape = 0, None
    with path.open("wb") as file:
        file.seek(8 + _HEADER)
        for part in rows:
            count, shape = count + len(part), list(part.shape[1:])
            file.write(part.contiguous().numpy().data)
        if shape is None:
            raise UserError(f"There are no rows to write to {path}.")
        end = file.tell() - 8 - _HEADER
        header[name] = {"dtype": "U8", "shape": [count, *shape], "data_offsets": [0, end]}
        for other, tensor in others().items():
            data = tensor.contiguous().numpy().tobytes()
            kind = next(kind for kind, dtype in _DTYPES.items() if dtype == tensor.dtype)
            header[other] = {
                "dtype": kind,
                "shape": list(tensor.shape),
                "data_offsets": [end, end + len(data)],
            }
            end += len(data)
            file.write(data)
        text = json.dumps(header).encode()
        if len(text) > _HEADER:
            raise UserError(f"The header of {path} has {len(text)} bytes, but at most {_HEADER} are allowed.")
        file.seek(0)
        file.write(_HEADER.to_bytes(8, "little") + text.ljust(_HEADER))


@dataclass(frozen=True)
class Entry:
    """Hold the location of one tensor in a safetensors file.

    Attributes:
        offset: offset of its first byte.
        shape: its extents.
        dtype: dtype of its elements.

    Examples:
        >>> import torch
        >>> from mergeability.weights.safetensors_file import Entry
        >>> Entry(offset=128, shape=(2, 3), dtype=torch.float32).size
        6
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class TensorFile:
    """Open a safetensors file; read the header at once and tensors on request.

    Attributes:
        path: the file.
        entries: tensor name → where it lies.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.weights.safetensors_file import TensorFile
        >>> file = TensorFile(tiny_task_vectors(cars=[1, 0]).model("cars").path)
        >>> file.entries["weight"].shape, file.read_float32("weight", 0, 1)
        ((2,), array([65.], dtype=float32))
    """

    def __init__(self, path: str | Path) -> None:
        """Check the file and read its header.

        Raises:
            UserError: there is no such file, or it is truncated, or it is not a safetensors file.
        """
        self.path = Path(path)
        _check(self.path)
        with self.path.open("rb") as file:
            self._stamp = _stamp(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.entries = {name: self._entry(name, one, 8 + length) for name, one in header.items()}

    @property
    def files(self) -> dict[str, Path]:
        """The mapping from the name of the file to its path."""
        return {self.path.name: self.path}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read the elements from `start` to `stop` of a flattened tensor, in its original dtype."""
        return _viewed(self._bytes(self.entries[name], start, stop), self.entries[name].dtype)

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the elements from `start` to `stop` of a flattened tensor, converted to float32.

        In NumPy: it runs in worker threads, each of which would start PyTorch's threads anew.
        """
        entry = self.entries[name]
        if entry.dtype.itemsize == 2 and entry.dtype.is_floating_point:
            values = np.empty((entry.size if stop is None else stop) - start, dtype=np.float32)
            self._widen_into(entry, start, values)
            return values
        data = self._bytes(entry, start, stop)
        if entry.dtype in _NUMPY:
            # A float64 value beyond the range of float32 becomes infinite, which callers detect.
            with np.errstate(over="ignore"):
                return data.view(_NUMPY[entry.dtype]).astype(np.float32, copy=False)
        return _viewed(data, entry.dtype).float().numpy()

    def fill_float32(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill a float32 array with the elements of a tensor, beginning with element `start`.

        Reading into memory that is already in use is several times as fast as reading into new memory, because the
        system has to provide every page of new memory.
        """
        entry = self.entries[name]
        if entry.dtype == torch.float32:
            self._read_into(entry.offset + 4 * start, out.view(np.uint8))
        elif entry.dtype.itemsize == 2 and entry.dtype.is_floating_point:
            self._widen_into(entry, start, out)
        else:
            out[:] = self.read_float32(name, start, start + len(out))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its original dtype and shape."""
        return self.read(name).reshape(self.entries[name].shape)

    def mapped(self, name: str) -> Tensor:
        """Return the bytes of one tensor as a memory map of the file.

        The view is copy-on-write: nothing written to it reaches the file.

        Raises:
            UserError: the file was changed since it was opened, or cannot be read.
        """
        entry = self.entries[name]
        if entry.dtype != torch.uint8:
            raise UserError(
                f"Only tensors of bytes can be memory-mapped, but '{name}' in {self.path} is {entry.dtype}."
            )
        if entry.size == 0:
            return self.tensor(name)
        try:
            with self.path.open("rb") as file:
                self._compare(file.fileno())
                # Copy-on-write, because PyTorch warns about read-only arrays.
                data = np.memmap(file, np.uint8, "c", entry.offset, entry.shape)
        except OSError as error:
            raise UserError(f"Cannot read {self.path}: {error.strerror or error}.") from error
        found = torch.from_numpy(data)
        # Pickling sends the path, and the other process maps the file instead of receiving a copy.
        found.mapped_from = (self.path, name)  # type: ignore[attr-defined]
        return found

    def check_unchanged(self) -> None:
        """Check that the file has not changed since it was opened.

        Raises:
            UserError: it was replaced or written to: its parts would not belong together.
        """
        with self.path.open("rb") as file:
            self._compare(file.fileno())

    def _compare(self, handle: int) -> None:
        if _stamp(handle) != self._stamp:
            raise UserError(f"{self.path} was changed while it was in use. Run the command again.")

    def _entry(self, name: str, described: dict, data_begins: int) -> Entry:
        if described["dtype"] not in _DTYPES:
            raise UserError(
                f"'{name}' in {self.path} has the unsupported type {described['dtype']}. Expected one of"
                f" {', '.join(_DTYPES)}. Save the tensor as float32."
            )
        return Entry(
            data_begins + described["data_offsets"][0],
            tuple(described["shape"]),
            _DTYPES[described["dtype"]],
        )

    def _bytes(self, entry: Entry, start: int, stop: int | None) -> np.ndarray:
        width = entry.dtype.itemsize
        stop = entry.size if stop is None else stop
        data = np.empty((stop - start) * width, dtype=np.uint8)
        self._read_into(entry.offset + start * width, data)
        return data

    def _widen_into(self, entry: Entry, start: int, out: np.ndarray) -> None:
        """Fill a float32 array with elements in bfloat16 or float16, a few at a time."""
        narrow = _narrow(min(_NARROW, len(out)))
        with self._opened(entry.offset + 2 * start) as file:
            for first in range(0, len(out), _NARROW):
                part = out[first : first + _NARROW]
                data = narrow[: len(part)]
                _fill(file, data.view(np.uint8))
                if entry.dtype == torch.bfloat16:
                    bits = part.view(np.uint32)
                    bits[:] = data
                    bits <<= 16
                else:
                    # PyTorch converts float16 in a thirtieth of NumPy's time.
                    halves = torch.from_numpy(data.view(np.float16))
                    for wide, half in zip(
                        torch.from_numpy(part).split(_PIECE), halves.split(_PIECE), strict=True
                    ):
                        wide.copy_(half)

    def _read_into(self, offset: int, data: np.ndarray) -> None:
        with self._opened(offset) as file:
            _fill(file, data)

    @contextlib.contextmanager
    def _opened(self, offset: int) -> Iterator[io.FileIO]:
        """Open the file at an offset; each read has a handle, as concurrent threads would move a shared position."""
        try:
            with self.path.open("rb", buffering=0) as file:
                self._compare(file.fileno())
                file.seek(offset)
                yield file
        except OSError as error:
            raise UserError(f"Cannot read {self.path}: {error.strerror or error}.") from error


def _narrow(elements: int) -> np.ndarray:
    """Return memory of this thread for elements of two bytes, whose contents are lost at the next call."""
    if len(getattr(_memory, "narrow", ())) < elements:
        _memory.narrow = np.empty(elements, dtype=np.uint16)
    return _memory.narrow[:elements]


def as_bytes(tensor: Tensor) -> np.ndarray:
    """Return the bytes of a tensor in the order of its elements, as uint8; without a copy if it is contiguous.

    Examples:
        >>> import torch
        >>> from mergeability.weights.safetensors_file import as_bytes
        >>> as_bytes(torch.tensor([1, 256], dtype=torch.int16))
        array([1, 0, 0, 1], dtype=uint8)
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # PyTorch cannot view an empty tensor as another dtype.
    return flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, dtype=np.uint8)


def _stamp(handle: int) -> tuple[int, int, int, int]:
    """Tell one state of one file from another."""
    status = os.fstat(handle)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _viewed(data: np.ndarray, dtype: torch.dtype) -> Tensor:
    # PyTorch cannot view an empty tensor as another dtype.
    return torch.from_numpy(data).view(dtype) if len(data) else torch.empty(0, dtype=dtype)


def _check(path: Path) -> None:
    try:
        # The library reports a file that it cannot open as missing.
        with path.open("rb"):
            pass
        # Checks the header and the file length.
        with safetensors.safe_open(path, framework="pt"):
            pass
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        damaged = (f"truncated or damaged ({error})", "Copy it again.")
        what, cure = recognised(path, SAFETENSORS) or damaged
        raise UserError(f"{path} is not a complete safetensors file; it is {what}. {cure}") from error


def _fill(file: io.FileIO, data: np.ndarray) -> None:
    """Fill an array from the position of an open file: one system call may return less than was asked for."""
    view, done = data.data, 0
    while done < len(data):
        count = file.readinto(view[done:])
        if not count:
            raise OSError("the file became shorter while it was read")
        done += count
