"""Step 5, what is known about each model: everything expensive, computed once per model and stored."""

from importlib import import_module
from typing import Any

_LAZY = {"Profiles": "profiles", "Views": "views"}
_MODULES = ("activations", "gradients", "profiles", "shared_gradients", "sign_conflict", "views")
__all__ = [
    "Profiles",
    "Views",
    "activations",
    "gradients",
    "profiles",
    "shared_gradients",
    "sign_conflict",
    "views",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"mergeability.profiles.{_LAZY[name]}"), name)
    if name in _MODULES:
        return import_module(f"mergeability.profiles.{name}")
    raise AttributeError(f"module 'mergeability.profiles' has no attribute {name!r}")
