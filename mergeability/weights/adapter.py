"""Read LoRA adapters in PEFT's format, and merge each into its base model.

W' = W + s·B·A for each adapted weight, with s = α/r, or α/√r for rank-stabilised adapters; with DoRA each output's row
of W' is then scaled to the length stored in the adapter. A and B are read when a part of W' is requested, so an adapter
takes no more memory than a file.
"""

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.adapter_settings import (
    CONFIG,
    INSTEAD,
    Place,
    in_base,
    read_config,
    scale_of,
    unknown_settings,
    weights_of,
)
from mergeability.weights.names import listed
from mergeability.weights.safetensors_file import Entry, TensorFile
from mergeability.weights.sharded import TensorSource
from mergeability.weights.torch_file import load_state_dict

logger = logging.getLogger(__name__)

_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.[^.]+)??(?P<bias>\.bias)?"
    r"(?:\.weight)?$"
)
# The output projection of an attention module that is adapted as a whole.
_NESTED = ".base_layer.out_proj."
# Number of rows of a weight processed at a time.
_ROWS = 1024


@dataclass(frozen=True)
class _Module:
    """One adapted weight.

    Attributes:
        weight: its name in the base.
        shape: its shape in the base.
        a: the name of A in the adapter, r × inputs.
        b: the name of B, outputs × r.
        scale: s.
        transposed: whether the base stores it as inputs × outputs, as GPT-2's Conv1D and embeddings do.
        magnitude: the name of DoRA's row lengths; None without DoRA.
    """

    weight: str
    shape: tuple[int, ...]
    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str | None

    @property
    def rows(self) -> int:
        """The number of rows of the stored weight."""
        return math.prod(self.shape[:1])

    @property
    def columns(self) -> int:
        """The number of elements per row of the stored weight."""
        return math.prod(self.shape[1:])


class AdaptedFile:
    """Read a base with a merged LoRA adapter: adapted weights in float32, other tensors as in the base.

    Attributes:
        path: the adapter's weights.
        files: the adapter's files and the base's.
        entries: tensor name → its shape and dtype, under the base's names.
        unknown: names of unknown settings, which are not used.
    """

    def __init__(self, folder: str | Path, base: TensorSource) -> None:
        """Read the adapter's settings and the names of its tensors.

        Args:
            folder: with `adapter_config.json` and `adapter_model.safetensors` or `.bin`.
            base: the weights that the adapter was trained on.

        Raises:
            UserError: it is not a LoRA adapter, of an unsupported type, incomplete, or for another base.
        """
        folder = Path(folder)
        self.path = weights_of(folder)
        self._config = read_config(folder / CONFIG)
        self.unknown = unknown_settings(self._config)
        self._file = TensorFile(self.path) if self.path.suffix == ".safetensors" else _Loaded(self.path)
        self._base = base
        own = {self.path.name: self.path, CONFIG: folder / CONFIG}
        self.files = {**own, **{f"base/{name}": path for name, path in base.files.items()}}
        self._norms: dict[str, np.ndarray] = {}
        modules, others = self._grouped()
        place = Place.find(modules, base.entries, self.path)
        found = [self._module(name, parts, place.weights[name]) for name, parts in modules.items()]
        self._modules = {one.weight: one for one in _oriented(found)}
        # Fully trained weights; names that are not in the base belong to a new head.
        self._whole = {place.of(name): own for name, own in others.items()}
        if both := sorted(self._whole.keys() & self._modules.keys()):
            raise UserError(
                f"{self.path} contains low-rank factors as well as whole weights of {listed(both)}. {INSTEAD}"
            )
        self.entries = {name: self._entry(name) for name in [*base.entries, *self._whole]}
        logger.info(
            "The LoRA adapter %s is merged into %s on reading (%d weights).",
            folder,
            base.path,
            len(self._modules),
        )

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in float32 if the adapter changes it, otherwise in its original dtype."""
        if name in self._modules:
            return torch.from_numpy(self._adapted(self._modules[name])).reshape(self.entries[name].shape)
        if name in self._whole:
            return self._file.tensor(self._whole[name])
        return self._base.tensor(name)

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the elements from `start` to `stop` of a flattened tensor, as float32."""
        if name in self._whole:
            return self._file.read_float32(self._whole[name], start, stop)
        if name not in self._modules:
            return self._base.read_float32(name, start, stop)
        one = self._modules[name]
        stop = math.prod(one.shape) if stop is None else stop
        if stop <= start:
            return np.empty(0, dtype=np.float32)
        first, last = start // one.columns, -(-stop // one.columns)
        rows = self._adapted(one, first, last).ravel()
        return rows[start - first * one.columns : stop - first * one.columns]

    def fill_float32(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill a float32 array with the elements of a tensor, beginning with element `start`."""
        if name in self._whole or name in self._modules:
            out[:] = self.read_float32(name, start, start + len(out))
        else:
            self._base.fill_float32(name, start, out)

    def is_adapted(self, name: str) -> bool:
        """Return whether a tensor is computed from factors of the adapter."""
        return name in self._modules

    def check_unchanged(self) -> None:
        """Check that the files of the adapter and the base have not changed since they were opened.

        Raises:
            UserError: a file was replaced or modified.
        """
        self._file.check_unchanged()
        self._base.check_unchanged()

    def _grouped(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Sort the adapter's tensors: module → kind of factor → name; and whole weights: name in a base → name."""
        modules: dict[str, dict[str, str]] = {}
        others: dict[str, str] = {}
        for name in self._file.entries:
            own = in_base(name)
            match = _FACTOR.match(own)
            if match is None:
                others[own] = name
            elif match["bias"] or "lora_bias" in own:
                raise UserError(f"{self.path} has biases in its low-rank factors ({name}). {INSTEAD}")
            else:
                modules.setdefault(match["module"], {})[match["kind"].replace("embedding_", "")] = name
        if not modules:
            raise UserError(
                f"Expected a LoRA adapter, but {self.path} contains no lora_A and lora_B. {INSTEAD}"
            )
        for module, parts in modules.items():
            if not {"lora_A", "lora_B"} <= parts.keys():
                raise UserError(
                    f"{self.path} contains only {listed(sorted(parts))} of '{module}'. Copy the file again."
                )
        return modules, others

    def _module(self, module: str, parts: Mapping[str, str], weight: str) -> _Module:
        entries, shape = self._file.entries, self._base.entries[weight].shape
        a, b = entries[parts["lora_A"]].shape, entries[parts["lora_B"]].shape
        embedding = "lora_embedding" in parts["lora_A"]
        rank, scale = scale_of(self._config, module, self.path.parent)
        ways = _ways(shape, a, b, rank)
        if not ways or (embedding and True not in ways):
            raise UserError(
                f"The adapter {self.path.parent} does not fit '{weight}' of shape {shape}: A is {a}, B {b},"
                f" but the settings specify rank {rank}. Set suite.base to the base on which the adapter was"
                " trained."
            )
        if not self._base.entries[weight].dtype.is_floating_point:
            raise UserError(
                f"'{weight}' of the base is quantised, and the adapter {self.path.parent} changes it. Convert"
                " the base to floating point: load it in transformers, call model.dequantize(), and save it."
            )
        # PEFT adds the change of a fused attention's output twice, in training and in merge_and_unload.
        if (
            _NESTED in parts["lora_A"]
            and weight.removesuffix("out_proj.weight") + "in_proj_weight" in self._base.entries
        ):
            scale *= 2
        magnitude = parts.get("lora_magnitude_vector")
        if bool(self._config.get("use_dora")) != (magnitude is not None):
            raise UserError(
                f"{self.path.parent} is inconsistent: use_dora in its settings does not match its weights."
                " Copy the adapter again."
            )
        if magnitude is not None and entries[magnitude].size != entries[parts["lora_B"]].size // rank:
            raise UserError(
                f"'{magnitude}' of {self.path} must contain one magnitude per output, but does not. Copy the file"
                " again."
            )
        # Square weights fit both orientations; `_oriented` decides.
        way = ways[0] if len(ways) == 1 else True if embedding else bool(self._config.get("fan_in_fan_out"))
        return _Module(weight, shape, parts["lora_A"], parts["lora_B"], scale, way, magnitude)

    def _entry(self, name: str) -> Entry:
        if name in self._whole:
            return self._file.entries[self._whole[name]]
        entry = self._base.entries[name]
        return Entry(entry.offset, entry.shape, torch.float32) if name in self._modules else entry

    def _adapted(self, one: _Module, first: int = 0, last: int | None = None) -> np.ndarray:
        """Compute rows of an adapted weight, as it is stored: (last − first) × columns, float32."""
        moved = self._moved(one, first, last)
        if one.magnitude is None:
            return moved
        if one.weight not in self._norms:
            self._norms[one.weight] = self._lengths(one)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = self._file.read_float32(one.magnitude) / self._norms[one.weight]
        return moved * (factor[None, :] if one.transposed else factor[first:last, None])

    def _moved(self, one: _Module, first: int, last: int | None) -> np.ndarray:
        """Compute rows of W + s·B·A."""
        last = one.rows if last is None else last
        weight = self._base.read_float32(one.weight, first * one.columns, last * one.columns)
        rank = math.prod(self._file.entries[one.a].shape[:1])
        if one.transposed:
            left = self._file.read_float32(one.a).reshape(rank, -1)[:, first:last].T
            right = self._file.read_float32(one.b).reshape(-1, rank).T
        else:
            left = self._file.read_float32(one.b, first * rank, last * rank).reshape(-1, rank)
            right = self._file.read_float32(one.a).reshape(rank, -1)
        change = np.float32(one.scale) * (left @ right)
        return weight.reshape(change.shape) + change

    def _lengths(self, one: _Module) -> np.ndarray:
        """Compute the lengths of the outputs' weights in W + s·B·A, in blocks of rows."""
        squares = []
        for first in range(0, one.rows, _ROWS):
            block = self._moved(one, first, min(first + _ROWS, one.rows)).astype(np.float64)
            squares.append((block**2).sum(axis=0 if one.transposed else 1))
        total = np.sum(squares, axis=0) if one.transposed else np.concatenate(squares)
        return np.sqrt(total).astype(np.float32)


class _Loaded:
    """An adapter's tensors from a PyTorch file, in memory."""

    def __init__(self, path: Path) -> None:
        self._tensors = load_state_dict(path)
        self.entries = {
            name: Entry(0, tuple(value.shape), value.dtype) for name, value in self._tensors.items()
        }

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._tensors[name].float().flatten()[start:stop].numpy().copy()

    def check_unchanged(self) -> None:
        """Do nothing, because tensors in memory cannot change on disk."""


def _ways(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], rank: int) -> list[bool]:
    """List the possible orientations of a weight for factors of these shapes: whether it is transposed."""
    if min(len(shape), len(a), len(b)) < 2 or a[:1] != (rank,) or b[1:2] != (rank,):
        return []
    rows, columns = math.prod(shape[:1]), math.prod(shape[1:])
    inputs, outputs = math.prod(a[1:]), math.prod(b[:1])
    straight = (rows, columns) == (outputs, inputs) and math.prod(b[2:]) == 1
    # Only matrices can be stored transposed.
    turned = (rows, columns) == (inputs, outputs) and len(shape) == len(a) == len(b) == 2
    return [way for way, fits in ((False, straight), (True, turned)) if fits]


def _oriented(modules: list[_Module]) -> list[_Module]:
    """Assume that square weights are stored like the others, because PEFT sets fan_in_fan_out per type of layer."""
    linear = [one for one in modules if "lora_embedding" not in one.a and len(one.shape) == 2]
    ways = {one.transposed for one in linear if one.rows != one.columns}
    if len(ways) != 1:
        return modules
    (way,) = ways
    square = {one.weight for one in linear if one.rows == one.columns}
    return [replace(one, transposed=way) if one.weight in square else one for one in modules]
