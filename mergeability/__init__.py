"""Will these fine-tuned models merge well, with which method, and why?

The nine steps, in order:

1. `data`: what is learned (tasks, their images, calibration samples).
2. `models`: what learns (CLIP, its zero-shot heads, the mini CLIP).
3. `finetuning`: one model per task, with optional penalties.
4. `task_vectors`: what fine-tuning changed.
5. `profiles`: what is known about each model (Gram matrices, singular factors, activations, gradients).
6. `metrics`: how two models relate, as arithmetic on T×T matrices.
7. `merging`: one model from many.
8. `evaluation`: how good a merge is.
9. `prediction`: can it be foreseen?

`reporting` shows it, `checkpoints` and `store` keep it.

>>> from mergeability import TaskVectors, measure, merging
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "TaskVectors": "mergeability.task_vectors",
    "Profiles": "mergeability.profiles.profiles",
    "measure": "mergeability.metrics.measure",
    "Store": "mergeability.store",
    "UserError": "mergeability.errors",
}
_GROUPS = (
    "checkpoints",
    "data",
    "evaluation",
    "finetuning",
    "merging",
    "metrics",
    "models",
    "prediction",
    "profiles",
    "reporting",
    "store",
    "task_vectors",
)
__all__ = ["__version__", *sorted(_LAZY), *_GROUPS]


def __getattr__(name: str) -> Any:
    """Import on first use: importing everything at once takes seconds."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _GROUPS:
        return import_module(f"mergeability.{name}")
    raise AttributeError(f"module 'mergeability' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
