"""Save weights in the format of the base's files, with its tensor names and configuration files."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.hub import companions, read_tensors
from mergeability.weights.names import read_names
from mergeability.weights.sharded import INDEX

CONFIG = "config.json"
# The files that `from_pretrained` of transformers opens.
_OPENED = ("model.safetensors", "pytorch_model.bin", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}")


def is_transformers(base: Checkpoint) -> bool:
    """Return whether a model is a transformers folder, with a config.json and weights of the standard name."""
    if base.origin.name not in _OPENED:
        return False
    config = {path.name: path for path in companions(base.origin)}.get(CONFIG)
    try:
        described = None if config is None else json.loads(config.read_bytes())
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(described, dict) and bool(described.get("model_type") or described.get("architectures"))


def files_to_copy(base: Checkpoint) -> dict[str, Path]:
    """Return the configuration and tokenizer files of a model: name → path."""
    return {path.name: path for path in companions(base.origin)}


def as_stored(base: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors as in the base's files, and add the tensors that only the base contains.

    Args:
        base: the base model.
        state: canonical name → tensor, in the base's shapes.

    Returns:
        Name in the base's files → tensor: views of the state's where possible.
    """
    shapes, read = _opened(base)
    stored = {}
    for name, source in read_names(shapes, base.towers).sources.items():
        tensor = state[name].T if source.transposed else state[name]
        sizes = [shapes[part][0] for part in source.names] if len(source.names) > 1 else None
        parts = (tensor,) if sizes is None else tensor.split(sizes)
        stored |= zip(source.names, parts, strict=True)
    return {name: stored[name] if name in stored else read(name) for name in shapes}


def bytes_on_disk(base: Checkpoint) -> int:
    """Return the size of the tensors in the base's files, in bytes."""
    return sum(math.prod(one.shape) * one.dtype.itemsize for one in base.source.entries.values())


def _opened(base: Checkpoint) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Return the shapes in the base's own files, and what reads a tensor of them."""
    if base.source.path == base.origin:
        return {name: one.shape for name, one in base.source.entries.items()}, base.source.tensor
    tensors = read_tensors(base.origin)
    return {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__
