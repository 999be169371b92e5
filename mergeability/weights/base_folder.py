"""Save weights in the format of the base's files, with its tensor names and configuration files."""

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.hub import companions, read_tensors
from mergeability.weights.lazy_state import LazyState
from mergeability.weights.names import read_names
from mergeability.weights.sharded import INDEX

CONFIG = "config.json"
# The files that `from_pretrained` of transformers opens.
_OPENED = ("model.safetensors", "pytorch_model.bin", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}")


def is_transformers(base: Checkpoint) -> bool:
    """Return whether a model is a transformers folder: one with config.json and a weights file of a standard name."""
    if base.origin.name not in _OPENED:
        return False
    config = {path.name: path for path in companions(base.origin)}.get(CONFIG)
    try:
        described = None if config is None else json.loads(config.read_bytes())
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(described, dict) and bool(described.get("model_type") or described.get("architectures"))


def files_to_copy(base: Checkpoint) -> dict[str, Path]:
    """Return the paths of a model's configuration and tokenizer files, by file name."""
    return {path.name: path for path in companions(base.origin)}


def as_stored(base: Checkpoint, state: Mapping[str, Tensor]) -> LazyState:
    """Rename tensors as in the base's files, and add the tensors that only the base contains.

    Args:
        base: the base model.
        state: canonical name → tensor, in the base's shapes; lazy states are read on access.

    Returns:
        Name in the base's files → tensor: views of the state's where possible.
    """
    entries, read = _opened(base)
    given = LazyState.of(state)
    shapes = {name: shape for name, (shape, _) in entries.items()}
    places = {
        part: (name, position, source)
        for name, source in read_names(shapes, base.towers).sources.items()
        for position, part in enumerate(source.names)
    }
    # Parts of one tensor are apart in a file, and a layer has two fused ones: weight and bias.
    fused = lru_cache(maxsize=2)(given.__getitem__)

    def stored(part: str) -> Tensor:
        if part not in places:
            return read(part)
        name, position, source = places[part]
        tensor = fused(name) if len(source.names) > 1 else given[name]
        tensor = tensor.T if source.transposed else tensor
        return (
            tensor.split([shapes[one][0] for one in source.names])[position]
            if len(source.names) > 1
            else tensor
        )

    dtypes = {
        name: given.dtypes[places[name][0]] if name in places else own for name, (_, own) in entries.items()
    }
    # What is one whole tensor in both can be computed in parts.
    parts = {
        part: given.parts[name]
        for part, (name, _, source) in places.items()
        if name in given.parts and len(source.names) == 1 and not source.transposed
    }
    return LazyState(shapes, dtypes, stored, parts=parts, one_thread=given.one_thread)


def bytes_on_disk(base: Checkpoint) -> int:
    """Return the size of the tensors in the base's files, in bytes."""
    return sum(math.prod(one.shape) * one.dtype.itemsize for one in base.source.entries.values())


def _opened(
    base: Checkpoint,
) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], Callable[[str], Tensor]]:
    """Return the shapes and dtypes in the base's own files, and a function that reads a tensor of them."""
    if base.source.path == base.origin:
        return {name: (one.shape, one.dtype) for name, one in base.source.entries.items()}, base.source.tensor
    tensors = read_tensors(base.origin)
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}, tensors.__getitem__
