"""Before Lightning loads a file, check that this training run saved the file: Lightning's own errors are unclear."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mergeability.errors import UserError
from mergeability.weights.torch_file import load_pickle

# The keys that Lightning requires in a training state.
_PARTS = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": Mapping,
    "state_dict": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
}


def state_fault(path: Path, module: nn.Module) -> str | None:
    """Return the reason why a file is not a training state of a module; None if it is one.

    Args:
        path: file written by Lightning.
        module: the module to train.
    """
    try:
        state = load_pickle(path)
    except UserError as error:
        return str(error).split(". ")[0]
    if not isinstance(state, Mapping):
        return f"it holds {type(state).__name__}"
    for name, kind in _PARTS.items():
        if not isinstance(state.get(name), kind):
            return f"it has no {name}"
    own = module.state_dict()
    given = state["state_dict"]
    different = sorted(map(str, own.keys() ^ given.keys()))
    different += sorted(name for name in own.keys() & given.keys() if not _fits(given[name], own[name]))
    if different:
        return f"it is of another network, such as in {different[0]}"
    if not all(
        isinstance(one, Mapping) and {"state", "param_groups"} <= one.keys()
        for one in state["optimizer_states"]
    ):
        return "its optimiser states are none"
    return None


def _fits(given: Any, own: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == own.shape and given.layout == torch.strided
