"""Read, check, hash and write state dicts with canonical tensor names.

Canonical names are open_clip's for the visual tower inside a CLIP, `visual.conv1.weight`. Weights are read
from safetensors only: such a file contains only tensors and no code.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import atomic_file, digest, read_object, write_text
from mergeability.weights.adapter import AdaptedFile
from mergeability.weights.file_hashes import file_hash
from mergeability.weights.names import (
    VISUAL,
    Source,
    canonical_shape,
    canonical_sources,
    left_over,
    listed,
    read_names,
)
from mergeability.weights.safetensors_file import TensorFile, write_tensors
from mergeability.weights.sharded import INDEX, ShardedFile, TensorSource

PREFIX = "visual."
# Hugging Face's `CLIPVisionModel` has no projection, so fine-tuning it leaves the base's projection unchanged.
PROJECTION = "visual.proj"


class Checkpoint:
    """Read a state dict from disk, one tensor or part of a tensor at a time.

    Attributes:
        path: the safetensors file.
        names: canonical tensor names, sorted.
        shapes: canonical name → shape.
        dtypes: canonical name → dtype.
        origin: the given file, if it was converted into `path`; otherwise `path`.
        towers: which towers of a CLIP are read, "visual" or "both".
        left_out: kind of what is not read (the text tower, a head, other tensors, settings of an adapter, entries of
            the file, files of the folder) → names.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = checkpoints.save(f"{folder}/model.safetensors", {"weight": torch.ones(2, 3)})
        ...     checkpoint = checkpoints.Checkpoint.open(path)
        ...     checkpoint.shapes, checkpoint.tensor("weight").sum()
        ({'weight': (2, 3)}, tensor(6.))
    """

    def __init__(
        self, file: TensorSource, hash_of: Callable[[Path], str] | None = None, towers: str = VISUAL
    ) -> None:
        """Use an opened file.

        Args:
            file: the file.
            hash_of: function that hashes a file; SHA-256 of its bytes when None.
            towers: "visual", or "both" to read the text tower of a CLIP too.

        Raises:
            UserError: the file contains only a part of a visual tower.
        """
        self._hash_of = hash_of or file_hash
        self.path = file.path
        self._lent: Checkpoint | None = None
        self._file = file
        self.towers, self.origin = towers, file.path
        reading = read_names(file.entries, towers)
        self._sources, self.left_out = reading.sources, dict(reading.left_out)
        if isinstance(file, AdaptedFile) and file.unknown:
            self.left_out["settings"] = file.unknown
        self.names = tuple(sorted(self._sources))
        self.shapes = {name: self._shape(source) for name, source in self._sources.items()}
        self.dtypes = {name: self._dtype(name, source) for name, source in self._sources.items()}

    @classmethod
    def open(cls, path: str | Path, towers: str = VISUAL) -> "Checkpoint":
        """Open a safetensors file or the index of several files; read only the headers.

        Args:
            path: the file.
            towers: "visual", or "both" to read the text tower of a CLIP too.

        Raises:
            UserError: there is no such file, or it is truncated, or it is not a safetensors file, or its names
                are those of a visual tower in part only.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"No checkpoint at {path}. Check the path, or train the model with train.py.")
        file = ShardedFile(path) if path.name.endswith(INDEX) else TensorFile(path)
        return cls.of(file, towers=towers)

    @classmethod
    def of(
        cls, file: TensorSource, hash_of: Callable[[Path], str] | None = None, towers: str = VISUAL
    ) -> "Checkpoint":
        """Create a checkpoint object that reads tensors from an open file.

        Raises:
            UserError: it holds no tensors, or its names are those of a visual tower in part only.
        """
        path = file.path
        if not file.entries:
            raise UserError(f"Expected a state dict as safetensors, but {path} contains no tensors.")
        try:
            return cls(file, hash_of, towers)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @staticmethod
    def canonical(tensors: Mapping[str, Tensor], owner: str | Path) -> dict[str, Tensor]:
        """Convert the visual tower of an external state dict to canonical names and layouts.

        Args:
            tensors: state dict under any known names; a text tower, complete or not, is left out.
            owner: file or model that the tensors belong to, for messages.

        Raises:
            UserError: names are missing or left over, or parts of a tensor do not fit together.
        """
        try:
            if others := left_over(tensors):
                raise UserError(
                    f"Expected the visual tower of a CLIP, but found other tensors ({len(others)}): "
                    f"{listed(others)}. Save the state dict of the plain CLIP model again."
                )
            return {name: assembled(tensors, one) for name, one in canonical_sources(tensors).items()}
        except UserError as error:
            raise UserError(f"{owner}: {error}") from error

    def completed(self, base: "Checkpoint") -> "Checkpoint":
        """Return this checkpoint; add the base's projection if only the base has one."""
        if PROJECTION in self.shapes or PROJECTION not in base.shapes or not _is_tower(self.names):
            return self
        whole = copy.copy(self)
        whole._lent = base
        whole.names = tuple(sorted([*self.names, PROJECTION]))
        whole.shapes = {**self.shapes, PROJECTION: base.shapes[PROJECTION]}
        whole.dtypes = {**self.dtypes, PROJECTION: base.dtypes[PROJECTION]}
        return whole

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return this checkpoint with tensors renamed by the mapping old name → new name."""
        other = copy.copy(self)
        other.names = tuple(sorted(names[name] for name in self.names))
        other.shapes = {names[name]: shape for name, shape in self.shapes.items()}
        other.dtypes = {names[name]: dtype for name, dtype in self.dtypes.items()}
        other._sources = {names[name]: source for name, source in self._sources.items()}
        return other

    @property
    def floating(self) -> list[str]:
        """The names of the floating-point tensors."""
        return [name for name in self.names if self.dtypes[name].is_floating_point]

    @property
    def has_lent_projection(self) -> bool:
        """Whether the projection was copied from the base, because this model's file has none."""
        return self._lent is not None

    @property
    def source(self) -> TensorSource:
        """The source file or files, with their original tensor names."""
        return self._file

    @property
    def is_adapted(self) -> bool:
        """Whether this checkpoint is a base with a merged adapter."""
        return isinstance(self._file, AdaptedFile)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 hash of the file's bytes, as 64 hexadecimal digits; for several files, the hash of their hashes.

        Raises:
            UserError: the file was changed since it was opened.
        """
        return self.hash_by(self.hash_of)

    def hash_of(self, path: Path) -> str:
        """Return the hash of one of the files."""
        return self._hash_of(path)

    def hash_by(self, hash_of: Callable[[Path], str]) -> str:
        """Return the same value as `sha256`, but compute the hash of each file with the function `hash_of`.

        Raises:
            UserError: a file was changed since it was opened.
        """
        hashes = {name: hash_of(path) for name, path in self._file.files.items()}
        self._file.check_unchanged()
        return next(iter(hashes.values())) if len(hashes) == 1 else digest({"files": hashes})

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its original dtype; the caller may modify the result."""
        if self._lent is not None and name == PROJECTION:
            return self._lent.tensor(name)
        source = self._sources[name]
        parts = [self._file.tensor(part) for part in source.names]
        # Parts of different dtypes become float32, the dtype that the checkpoint reports.
        whole = parts[0] if len(parts) == 1 else torch.cat([part.to(self.dtypes[name]) for part in parts])
        return whole.T.contiguous() if source.transposed else whole

    def values(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the elements from `start` to `stop` of a flattened tensor, as float32."""
        size = math.prod(self.shapes[name])
        stop = size if stop is None else min(stop, size)
        return self.fill(name, start, np.empty(max(stop - start, 0), dtype=np.float32))

    def fill(self, name: str, start: int, out: np.ndarray) -> np.ndarray:
        """Fill a float32 array with the elements of a tensor, beginning with element `start`, and return the array."""
        if self._lent is not None and name == PROJECTION:
            return self._lent.fill(name, start, out)
        source, before, stop = self._sources[name], 0, start + len(out)
        if source.transposed:
            out[:] = self.tensor(name).float().flatten()[start:stop].numpy()
            return out
        for part in source.names:
            size = self._file.entries[part].size
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                self._file.fill_float32(part, first, out[before + first - start : before + last - start])
            before += size
        return out

    def reads_parts(self, name: str) -> bool:
        """Return whether a part of a tensor can be read alone, with exactly the values it has in the whole tensor."""
        source = self._sources.get(name)
        if source is None:
            return self._lent is not None and self._lent.reads_parts(name)
        # Matrix products of some rows may round differently from those of all rows.
        computed = isinstance(self._file, AdaptedFile) and any(map(self._file.is_adapted, source.names))
        return not source.transposed and not computed

    def state_dict(self) -> dict[str, Tensor]:
        """Read every tensor and return a state dict with canonical names."""
        return {name: self.tensor(name) for name in self.names}

    def _dtype(self, name: str, source: Source) -> torch.dtype:
        dtypes = {self._file.entries[part].dtype for part in source.names}
        if len(dtypes) == 1:
            return dtypes.pop()
        if not all(dtype.is_floating_point for dtype in dtypes):
            raise UserError(f"Some parts of '{name}' are integers: {', '.join(source.names)}.")
        return torch.float32

    def _shape(self, source: Source) -> tuple[int, ...]:
        return canonical_shape([self._file.entries[name].shape for name in source.names], source.transposed)


def _is_tower(names: Iterable[str]) -> bool:
    return "visual.conv1.weight" in names and any("visual.transformer.resblocks." in name for name in names)


def assembled(tensors: Mapping[str, Tensor], source: Source) -> Tensor:
    """Assemble one canonical tensor from the tensors of a file.

    Raises:
        UserError: the parts do not fit together.
    """
    parts = [tensors[name] for name in source.names]
    # Raises if the parts do not fit together.
    canonical_shape([tuple(part.shape) for part in parts], source.transposed)
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.T.contiguous() if source.transposed else whole


def load(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file under its original name.

    Raises:
        UserError: there is no such file, or it is truncated, or it is not a safetensors file.

    Examples:
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_task_vectors
        >>> checkpoints.load(tiny_task_vectors(cars=[1, 0]).model("cars").path)
        {'weight': tensor([65., 64.])}
    """
    if not Path(path).is_file():
        raise UserError(f"There is no file at {path}. Expected a safetensors file.")
    file = TensorFile(path)
    return {name: file.tensor(name) for name in file.entries}


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors' names, dtypes, shapes and bytes as 64 hexadecimal digits.

    The order of the tensors is ignored.

    Examples:
        >>> import torch
        >>> from mergeability import checkpoints
        >>> tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        >>> checkpoints.tensors_hash(tensors) == checkpoints.tensors_hash(dict(reversed(tensors.items())))
        True
    """
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def save(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write named tensors atomically as safetensors; return the path.

    Args:
        path: the file; its folder is created if needed.
        tensors: name → tensor; tensors may share memory.
        metadata: text for the header; {"format": "pt"} when None.

    Returns:
        The path.

    Raises:
        UserError: the disk is full or the folder cannot be written.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = checkpoints.save(f"{folder}/model.safetensors", {"weight": torch.ones(2, 3)})
        ...     print(path.name, sorted(checkpoints.load(path)))
        model.safetensors ['weight']
    """
    path = Path(path)
    # Clone, because safetensors rejects tensors that share memory, such as tied weights.
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        write_tensors(contiguous, temporary, dict(metadata or {"format": "pt"}))
    return path


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write `card.json`, the last file of a checkpoint; a checkpoint with this file is complete.

    Raises:
        UserError: the disk is full or the folder cannot be written.

    Examples:
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_task_vectors
        >>> folder = tiny_task_vectors().base_checkpoint.path.parent
        >>> checkpoints.write_card(folder, {"task": "cars"})
        >>> checkpoints.read_card(folder)
        {'task': 'cars'}
    """
    write_text(folder / "card.json", json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n")


def remove_card(folder: Path) -> None:
    """Mark a checkpoint as unfinished before replacing its files one by one.

    Examples:
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_task_vectors
        >>> folder = tiny_task_vectors().base_checkpoint.path.parent
        >>> checkpoints.write_card(folder, {"task": "cars"})
        >>> checkpoints.remove_card(folder)
        >>> checkpoints.read_card(folder) is None
        True
    """
    (folder / "card.json").unlink(missing_ok=True)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Read `card.json` in a checkpoint's folder; None if the checkpoint is not finished.

    Raises:
        UserError: the file exists but does not contain a JSON object.

    Examples:
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_task_vectors
        >>> folder = tiny_task_vectors().base_checkpoint.path.parent
        >>> checkpoints.read_card(folder) is None
        True
    """
    return read_object(folder / "card.json")
