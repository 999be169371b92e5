"""What is learned: tasks, the sources their images come from, and calibration samples."""

from importlib import import_module
from typing import Any

_LAZY = {
    "Images": "mergeability.data.tasks",
    "Task": "mergeability.data.tasks",
    "Source": "mergeability.data.sources",
    "Rendered": "mergeability.data.rendered",
    "ImageSource": "mergeability.data.real",
    "Layout": "mergeability.data.layouts",
    "image_task": "mergeability.data.real",
    "calibration_sample": "mergeability.data.calibration",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mergeability.data' has no attribute {name!r}")
