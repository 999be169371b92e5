"""Read a state dict from PyTorch's own kind of file, without running anything that may be hidden in it.

Such a file is a pickle: a program that builds objects. Only `torch.load(weights_only=True)` touches it here, which
knows how to build tensors and plain containers and refuses everything else.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.names import listed

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Where training scripts put the state dict, when they save more beside it.
_HOLDERS = ("state_dict", "model_state_dict", "model")
_INSTEAD = (
    "Where the model was made, run safetensors.torch.save_file(model.state_dict(), 'model.safetensors') and give that "
    "file."
)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.bin`, `.pt`, `.pth` or `.ckpt` file that holds a state dict, onto the CPU.

    Raises:
        UserError: there is no such file, it is damaged, or it holds anything but tensors by name: a pickled module or
            a TorchScript archive is refused, and never loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}: expected a state dict. Check the path.")
    if _is_torchscript(path):
        raise UserError(f"{path} is a TorchScript archive, a program: it is never loaded. {_INSTEAD}")
    try:
        with warnings.catch_warnings():
            # What it does not know it refuses.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise _not_whole(path, error) from error
        raise UserError(
            f"{path} holds pickled objects beside tensors, such as a whole module: loading them would run code from "
            f"the file, so it is refused ({_first_line(error)}). {_INSTEAD}"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise _not_whole(path, error) from error
    return _tensors(loaded, path)


def _not_whole(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a whole PyTorch file ({_first_line(error)}): it may be truncated, a Git LFS pointer, or "
        "a pickle of another kind. Download it again, or save the state dict as safetensors."
    )


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        holders = [name for name in _HOLDERS if isinstance(loaded.get(name), Mapping)]
        loaded = loaded[holders[0]] if len(holders) == 1 else loaded
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"Expected tensors by name in {path}, got {type(loaded).__name__ if loaded else 'nothing'}. {_INSTEAD}"
        )
    others = sorted(str(name) for name, value in loaded.items() if not isinstance(value, Tensor))
    if others:
        raise UserError(
            f"Expected nothing but tensors in {path}, but {len(others)} of its entries are something else: "
            f"{listed(others)}. {_INSTEAD}"
        )
    return {str(name): value.detach() for name, value in loaded.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    """Shorten PyTorch's explanation, which advises what is not done here, to what happened."""
    reasons = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
    text = reasons[0] if reasons else (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("WeightsUnpickler error: ").split(". ")[0].rstrip(".")
