"""One fine-tuned model per task: the Lightning module, its data, its penalties and the run around them."""

from importlib import import_module
from typing import Any

_LAZY = {
    "FineTuningModule": "mergeability.finetuning.module",
    "TrainingSettings": "mergeability.finetuning.module",
    "finetune": "mergeability.finetuning.run",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mergeability.finetuning' has no attribute {name!r}")
