"""What learns: CLIP models, the zero-shot heads their text towers make, and the pretraining of the mini CLIP."""

from importlib import import_module
from typing import Any

_LAZY = {
    "ClipModel": "mergeability.models.clip",
    "zero_shot_head": "mergeability.models.zero_shot",
    "pretrain": "mergeability.models.mini",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mergeability.models' has no attribute {name!r}")
