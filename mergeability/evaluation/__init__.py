"""How good a merge is: accuracies of models and of merges, and the accuracy of simple opponents."""

from importlib import import_module
from typing import Any

_LAZY = {
    "Judge": "mergeability.evaluation.accuracy",
    "pixel_accuracy": "mergeability.evaluation.accuracy",
    "evaluate_models": "mergeability.evaluation.merge_quality",
    "evaluate_pairs": "mergeability.evaluation.merge_quality",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mergeability.evaluation' has no attribute {name!r}")
