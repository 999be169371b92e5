"""Find the weights in a folder of files, and list the weights that are not read."""

import re
from collections.abc import Iterable
from pathlib import Path

from mergeability.errors import UserError
from mergeability.weights import adapter_settings
from mergeability.weights.names import listed
from mergeability.weights.sharded import INDEX
from mergeability.weights.torch_file import SUFFIXES

# Names of weights files in a folder or repository, in order of preference.
WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# Alternatives if none of these exists: an index of several files, or an adapter.
OTHERS = (f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}", *adapter_settings.WEIGHTS)
# Folders of checkpoints in other layouts: a file by which each is recognised, what it is, and what to do.
_IN_PARTS = (
    (
        "zero_to_fp32.py",
        "a checkpoint of DeepSpeed, which is in parts",
        "Run python zero_to_fp32.py . weights in it, and give the folder weights.",
    ),
    (
        ".metadata",
        "a distributed checkpoint of PyTorch, which is in parts",
        "Run python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt, and give model.pt.",
    ),
)
# Files of a training in its folder of weights.
_TRAINING = re.compile(r"^(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states)")
_OTHER_FORMATS = (".h5", ".msgpack", ".gguf", ".onnx", ".ot", ".npz")


def weights_in(folder: Path) -> Path:
    """Return the path of the weights file in a folder, or of the index of several.

    Args:
        folder: one with one of `WEIGHTS`, an index, or a LoRA adapter.

    Raises:
        UserError: there is none; the message lists weights with other names, and recognises other layouts.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.weights.folders import weights_in
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("model.safetensors", "pytorch_model.bin"):
        ...         (Path(folder) / name).touch()
        ...     print(weights_in(Path(folder)).name)
        model.safetensors
    """
    found = [folder / name for name in (*WEIGHTS, *OTHERS) if (folder / name).is_file()]
    if found:
        return found[0]
    if (folder / adapter_settings.CONFIG).is_file():
        return adapter_settings.weights_of(folder)
    for name, what, cure in _IN_PARTS:
        if (folder / name).is_file():
            raise UserError(f"{folder} is {what}. {cure}")
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror or error}.") from error
    files = [one.name for one in inside if _is_weights(one)]
    folders = [f"{one.name}/" for one in inside if one.is_dir() and any(map(_is_weights, one.glob("*")))]
    given = f" It holds {listed(files or folders)}." if files or folders else ""
    raise UserError(
        f"{folder} contains none of {', '.join(WEIGHTS)} and no index file of sharded weights. Give the path of"
        f" the weights file.{given}"
    )


def other_weights(path: Path, companions: Iterable[str]) -> list[str]:
    """List the files in the folder of a weights file that seem to be weights and are not read.

    Args:
        path: the file that is read.
        companions: names of the files that belong to it.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.weights.folders import other_weights
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("model.safetensors", "pytorch_model.bin", "optimizer.pt", "config.json"):
        ...         (Path(folder) / name).touch()
        ...     print(other_weights(Path(folder) / "model.safetensors", []))
        ['pytorch_model.bin']
    """
    used = {path.name, *companions}
    return sorted(
        one.name
        for one in path.parent.iterdir()
        if one.suffix in (".safetensors", *SUFFIXES, *_OTHER_FORMATS)
        and one.name not in used
        and not one.name.startswith(".")
        and not _TRAINING.match(one.name)
    )


def _is_weights(path: Path) -> bool:
    return path.suffix in (".safetensors", *SUFFIXES)
