"""Read a state dict from a PyTorch file without executing code from it.

Such a file is a pickle, a program that builds objects. It is only read with `torch.load(weights_only=True)`, which
builds only tensors and plain containers and rejects everything else.
"""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.names import listed
from mergeability.weights.recognition import PYTORCH, recognised

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Keys under which training scripts save the state dict together with other data.
_HOLDERS = ("state_dict", "model_state_dict", "model")
# Keys of what a training continues from, besides weights.
_TRAINING = re.compile(
    r"optim|sched|scaler|callback|loops|rng|random|sampler|loader|hyper|hparams|arg|config|metric|loss|histor",
    re.I,
)
# An archive, or a pickle of protocol 2 or later.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")
# Exceptions of PyTorch and its readers for damaged files; code from the file never runs.
_DAMAGE = (
    RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# Tensors without plain values: how to detect them, and the remedy.
_UNREADABLE: dict[str, tuple[Callable[[Tensor], bool], str]] = {
    "on the meta device, without values": (lambda value: value.is_meta, "load the weights before saving"),
    "quantised": (lambda value: value.is_quantized, "call .dequantize() on them"),
    "nested": (lambda value: value.is_nested, "call .to_padded_tensor(0.0) on them"),
    "sparse": (lambda value: value.layout != torch.strided, "call .to_dense() on them"),
    "complex": (lambda value: value.is_complex(), "call torch.view_as_real on them"),
}
_INSTEAD = (
    "Where the model was made, run safetensors.torch.save_file(model.state_dict(), 'model.safetensors') and give that "
    "file."
)


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of the state dict in a `.bin`, `.pt`, `.pth` or `.ckpt` file into CPU memory.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, is damaged, or contains more than named tensors: a pickled module or
            a TorchScript archive is never loaded.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability.weights.torch_file import load_state_dict
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.pt"
        ...     torch.save({"weight": torch.ones(2)}, path)
        ...     print(load_state_dict(path))
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    return _tensors(load_pickle(path), path)


def contents(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of the tensors that `load_state_dict` reads, and the entries with other tensors.

    Args:
        path: the file.

    Returns:
        The sorted names, and the sorted keys beside the state dict under which there are other weights, such as an
        average of them; the state of an optimiser or of a data loader is not among them.

    Raises:
        UserError: as `load_state_dict`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability.weights.torch_file import contents
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.pt"
        ...     weights = {"weight": torch.ones(2)}
        ...     torch.save({"model": weights, "ema": weights, "optimizer": {"state": {}}, "epoch": 3}, path)
        ...     print(contents(path))
        (['weight'], ['ema'])
    """
    loaded = load_pickle(path)
    tensors = _tensors(loaded, path)
    holder = _holder(loaded)
    others = [
        str(key)
        for key, value in loaded.items()
        if holder and key != holder and not _TRAINING.search(str(key)) and _has_weights(value)
    ]
    return sorted(tensors), sorted(others)


def load_pickle(path: Path) -> Any:
    """Read plain containers and tensors from a PyTorch file; other objects are never constructed.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, is damaged, or contains other objects.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from mergeability.weights.torch_file import load_pickle
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.pt"
        ...     torch.save({"weight": torch.ones(2)}, path)
        ...     print(load_pickle(path))
        {'weight': tensor([1., 1.])}
    """
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}: expected a state dict. Check the path.")
    try:
        begins, torchscript = _beginning(path), _is_torchscript(path)
    except _DAMAGE as error:
        raise _not_whole(path, error) from error
    if not begins.startswith(_BEGINNINGS):
        raise _not_whole(path, ValueError("it begins as neither an archive nor a pickle"))
    if torchscript:
        raise UserError(
            f"{path} is a TorchScript archive, which contains a program and is never loaded. {_INSTEAD}"
        )
    try:
        with warnings.catch_warnings():
            # Suppress warnings about old formats and rare tensors; unknown objects raise an error anyway.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise _not_whole(path, error) from error
        raise UserError(
            f"{path} contains, in addition to tensors, other pickled objects, such as a whole module; loading them "
            f"would run code from the file, so the file is rejected ({_first_line(error)}). {_INSTEAD}"
        ) from error
    except _DAMAGE as error:
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: Exception) -> UserError:
    if found := recognised(path, PYTORCH):
        what, cure = found
        return UserError(f"{path} is not a complete PyTorch file; it is {what}. {cure}")
    return UserError(
        f"{path} is not a complete PyTorch file ({_first_line(error)}): it may be truncated, a Git LFS pointer, or "
        "another kind of pickle. Download it again, or save the state dict as safetensors."
    )


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if (holder := _holder(loaded)) is not None:
        loaded = loaded[holder]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"Expected a mapping of names to tensors in {path}, got {_kind(loaded)}. {_INSTEAD}")
    # Names must be strings, unlike the integer keys of optimiser states.
    others = sorted(
        str(name)
        for name, value in loaded.items()
        if not isinstance(value, Tensor) or not isinstance(name, str)
    )
    if others:
        raise UserError(
            f"Expected only tensors in {path}, but {len(others)} of its entries are not: "
            f"{listed(others)}. {_INSTEAD}"
        )
    for kind, (is_such, cure) in _UNREADABLE.items():
        if such := sorted(name for name, value in loaded.items() if is_such(value)):
            raise UserError(
                f"Expected plain tensors in {path}, but {len(such)} of them are {kind}: {listed(such)}. On the "
                f"machine where the model was created, {cure}, and save the model again."
            )
    return {name: value.detach() for name, value in loaded.items()}


def _holder(loaded: Any) -> str | None:
    """Return the key of a training checkpoint under which its state dict is."""
    holders = [
        name for name in _HOLDERS if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)
    ]
    return holders[0] if len(holders) == 1 else None


def _has_weights(value: Any) -> bool:
    """Return whether there are tensors with more than one element in a nested container."""
    if isinstance(value, Tensor):
        return value.numel() > 1
    values = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    )
    return any(map(_has_weights, values))


def _kind(loaded: Any) -> str:
    return "nothing" if isinstance(loaded, Mapping) else type(loaded).__name__


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _first_line(error: Exception) -> str:
    """Shorten PyTorch's explanation to the cause, without its advice, which does not apply here."""
    reasons = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
    text = reasons[0] if reasons else (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.removeprefix("WeightsUnpickler error: ").split(". ")[0].rstrip(".")
