"""Read weights that are stored in several files with an index, as `save_pretrained` writes large models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import read_json
from mergeability.weights.names import listed
from mergeability.weights.safetensors_file import Entry, TensorFile

INDEX = ".index.json"


class TensorSource(Protocol):
    """Define the interface of named tensors on disk: in a file, in several files, or in a base with an adapter."""

    @property
    def path(self) -> Path:
        """The path of the file, as shown in messages."""
        ...

    @property
    def files(self) -> Mapping[str, Path]:
        """The paths of the files that determine the tensors; the keys are names that do not depend on the folder."""
        ...

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The shape and dtype of each tensor, by name."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its original dtype and shape."""
        ...

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the elements from `start` to `stop` of a flattened tensor, converted to float32."""
        ...

    def fill_float32(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill a float32 array with the elements of a tensor, beginning with element `start`."""
        ...

    def check_unchanged(self) -> None:
        """Raise a UserError if a file was changed since it was opened."""
        ...


class ShardedFile:
    """Open several safetensors files that form one state dict; read only the headers.

    Attributes:
        path: the index.
        files: the index and the files it names.
        entries: tensor name → its shape and dtype.
    """

    def __init__(self, path: str | Path, opened: Callable[[Path], TensorFile] = TensorFile) -> None:
        """Read the index and the headers of all files.

        Args:
            path: the index, `model.safetensors.index.json`.
            opened: opens one of the files that the index names.

        Raises:
            UserError: the index or a file cannot be read, or a tensor is not in the file given by the index.
        """
        self.path = Path(path)
        self._places = read_index(self.path)
        names = sorted(set(self._places.values()))
        self.files = {self.path.name: self.path, **{name: self.path.parent / name for name in names}}
        self._shards = {name: opened(self._shard(name)) for name in names}
        absent = sorted(
            name for name, shard in self._places.items() if name not in self._shards[shard].entries
        )
        if absent:
            raise UserError(
                f"{self.path} lists {len(absent)} tensors that are missing from the files of the model: "
                f"{listed(absent)}. Copy all files of the model again."
            )
        unnamed = sorted(
            name
            for shard, file in self._shards.items()
            for name in file.entries
            if self._places.get(name) != shard
        )
        if unnamed:
            raise UserError(
                f"The weights files next to {self.path} contain {len(unnamed)} tensors that this index does not list:"
                f" {listed(unnamed)}. They may belong to another model. Copy the folder again."
            )
        self.entries = {name: self._shards[shard].entries[name] for name, shard in self._places.items()}

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its original dtype and shape."""
        return self._shards[self._places[name]].tensor(name)

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the elements from `start` to `stop` of a flattened tensor, converted to float32."""
        return self._shards[self._places[name]].read_float32(name, start, stop)

    def fill_float32(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill a float32 array with the elements of a tensor, beginning with element `start`."""
        self._shards[self._places[name]].fill_float32(name, start, out)

    def check_unchanged(self) -> None:
        """Check that the files have not changed since they were opened.

        Raises:
            UserError: a file was replaced or modified.
        """
        for shard in self._shards.values():
            shard.check_unchanged()

    def _shard(self, name: str) -> Path:
        path = self.path.parent / name
        if not path.is_file():
            raise UserError(
                f"{self.path} refers to the file {name}, which is missing from its folder. Copy all "
                "files of the model."
            )
        return path


def read_index(path: Path) -> dict[str, str]:
    """Read an index and return the mapping from tensor names to files in the same folder.

    Raises:
        UserError: the file cannot be read or is not an index.
    """
    if not path.is_file():
        raise UserError(f"There is no index at {path}.")
    index = read_json(path, cure="Download the index again.")
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(
            f"Expected the index of a sharded model, but {path} contains no weight_map. Download the index again."
        )
    # Never open files outside the index's folder, because an index may come from an untrusted source.
    wrong = [name for name, file in places.items() if not _is_file_name(file)]
    if wrong:
        raise UserError(
            f"Expected the index {path} to map every tensor to a file in the folder of the index, but it does not for "
            f"{listed(wrong)}. Download the index again."
        )
    return places


def _is_file_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and Path(value).name == value
        and "\0" not in value
    )
