"""Canonical state dicts: read lazily and safely, checked, hashed; written atomically, with a card.

Canonical names are open_clip's for the visual tower inside a CLIP, `visual.conv1.weight`. Weights are read
from safetensors only: such a file holds tensors and nothing that could be executed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.store import atomic_file, read_json, write_text

PREFIX = "visual."

# The visual tower saved alone (`clip.visual.state_dict()`), recognised by names no text tower has together.
_BARE_VISUAL = re.compile(
    r"^(class_embedding|positional_embedding|proj|conv1\.weight|ln_(pre|post)\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..+)$"
)


def canonical_names(names: list[str]) -> dict[str, str]:
    """Map canonical names to the names in a file, dropping whatever is not the visual encoder.

    `visual.x`, `model.visual.x` and (when the file is nothing but a visual tower) `x` all become `visual.x`;
    a text tower beside it is left out. Names of any other architecture are kept as they are.
    """
    for prefix in ("visual.", "model.visual.", "module.visual."):
        chosen = {f"visual.{name.removeprefix(prefix)}": name for name in names if name.startswith(prefix)}
        if chosen:
            return chosen
    if "class_embedding" in names and all(_BARE_VISUAL.match(name) for name in names):
        return {f"visual.{name}": name for name in names}
    return {name: name for name in names}


class Checkpoint:
    """One state dict on disk, read one tensor at a time.

    Attributes:
        path: the safetensors file.
        names: canonical tensor names, sorted.
        shapes: canonical name → shape.
        dtypes: canonical name → dtype.
    """

    def __init__(
        self, path: Path, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype]
    ) -> None:
        mapping = canonical_names(list(shapes))
        self.path = path
        self.names = tuple(sorted(mapping))
        self.shapes = {name: shapes[mapping[name]] for name in self.names}
        self.dtypes = {name: dtypes[mapping[name]] for name in self.names}
        self._stored_names = mapping

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Open a safetensors file and read its header only.

        Raises:
            UserError: there is no such file, or it is truncated, or it is not a safetensors file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise UserError(f"No checkpoint at {path}. Check the path, or make it with train.py.")
        shapes, dtypes = {}, {}
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle is not a mapping)
                view = file.get_slice(name)
                shapes[name] = tuple(view.get_shape())
                dtypes[name] = _DTYPES.get(view.get_dtype(), torch.float32)
        if not shapes:
            raise UserError(f"{path} holds no tensors: expected a state dict as safetensors.")
        return cls(path, shapes, dtypes)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes, 64 hexadecimal digits."""
        return file_hash(self.path)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its own dtype.

        The file is opened anew each time: an open handle would keep every page it ever touched resident.
        """
        with _open(self.path) as file:
            return file.get_tensor(self._stored_names[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Read every tensor, under canonical names."""
        with _open(self.path) as file:
            return {name: file.get_tensor(self._stored_names[name]) for name in self.names}


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _open(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="pt")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). It may be truncated, or a pickled .pt/.bin file: "
            "those are never loaded; save the state dict with safetensors.torch.save_file and copy it again."
        ) from error


def load(path: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file under the names it has there.

    Raises:
        UserError: there is no such file, or it is truncated, or it is not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No file at {path}: expected tensors as safetensors.")
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def file_hash(path: str | Path) -> str:
    """Hash a file's bytes: SHA-256, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors by name, dtype, shape and bytes, independent of their order."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def save(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write named tensors as safetensors, atomically; return the path.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    # Clones: safetensors refuses tensors that share memory, as tied weights do.
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata=dict(metadata or {"format": "pt"}))
    return path


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write `card.json`, the last file of a finished checkpoint: where it is, the checkpoint is whole."""
    write_text(folder / "card.json", json.dumps(card, indent=2, sort_keys=True, allow_nan=False) + "\n")


def remove_card(folder: Path) -> None:
    """Mark a checkpoint as unfinished, before its files are replaced one by one."""
    (folder / "card.json").unlink(missing_ok=True)


def read_card(folder: Path) -> dict[str, Any] | None:
    """Read `card.json` of a checkpoint's folder; None where the checkpoint is not finished."""
    return read_json(folder / "card.json")
