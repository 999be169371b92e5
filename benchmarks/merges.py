"""The merge methods as `conf/merge` lists them, and what is said about a merge too large to keep."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "conf" / "merge"
# The more numbers, the better two merges are compared: to about 1/√(2·16) of their difference.
_NUMBERS = 16


@cache
def names() -> tuple[str, ...]:
    """List the methods; files without a class are sets of them."""
    return tuple(path.stem for path in sorted(FOLDER.glob("*.yaml")) if "_target_" in (_options(path) or {}))


def made(name: str) -> Any:
    """Make a method with the options of its configuration."""
    return _made(_options(FOLDER / f"{name}.yaml"))


def needing_data() -> tuple[str, ...]:
    """List the methods that need images, so that weights alone cannot say how long they take."""
    return tuple(name for name in names() if made(name).needs_data)


def of_count(count: int) -> tuple[str, ...]:
    """List the methods that merge so many models from weights alone."""
    without = [name for name in names() if name not in needing_data()]
    return tuple(name for name in without if made(name).models in (None, count))


def sketch(merged: Mapping[str, Tensor]) -> list[float]:
    """Boil a merged task vector down to 16 sums of entries with random signs.

    The signs depend on names and positions alone, so the sketch of a difference is the difference of sketches,
    and its squared length is on average that of the vector.
    """
    total = np.zeros(_NUMBERS)
    for name, tensor in merged.items():
        size = math.ceil(tensor.numel() / _NUMBERS) * _NUMBERS
        values = np.zeros(size)
        values[: tensor.numel()] = tensor.detach().numpy().reshape(-1)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        bits = np.frombuffer(np.random.default_rng(seed).bytes(size // 8), np.uint8)
        total += np.where(np.unpackbits(bits), values, -values).reshape(-1, _NUMBERS).sum(0)
    return total.tolist()


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Estimate ‖ours − theirs‖ / ‖theirs‖ from two sketches; infinite where it is not a number."""
    length = float(np.linalg.norm(theirs))
    apart = float(np.linalg.norm(np.subtract(ours, theirs)))
    if apart == 0:
        return 0.0
    relative = apart / length if length else math.inf
    return math.inf if math.isnan(relative) else relative


def _options(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _made(options: Mapping[str, Any]) -> Any:
    arguments = {
        key: _made(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if key != "_target_"
    }
    module, _, name = options["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**arguments)
