"""Where the weights of a model lie: a file, a folder, or an id on the Hugging Face hub, found through its cache."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.torch_file import SUFFIXES, load_state_dict

if TYPE_CHECKING:
    from mergeability.store import Store

# What a folder or a repository calls its weights, the preferred name first.
WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 1


def find_weights(source: str | Path) -> Path:
    """Return the file that holds the weights of a model.

    Args:
        source: a file; a folder with one of `WEIGHTS`; or a hub id, `tanganke/clip-vit-base-patch16_svhn`. What exists
            here is never looked for on the hub.

    Raises:
        UserError: there is no such file, folder or repository; or neither a network nor a copy in the hub's cache.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found:
            raise UserError(
                f"{path} holds none of {', '.join(WEIGHTS)}: give the file of the weights itself."
            )
        return found[0]
    if path.is_file():
        return path
    if not is_hub_id(str(source)):
        raise UserError(
            f"No checkpoint at {path}. Check the path, make it with train.py, or give an id on the Hugging Face hub, "
            "<owner>/<name>."
        )
    return _from_hub(str(source))


def is_hub_id(source: str) -> bool:
    """Say whether a text can be the id of a repository: `owner/name`, and no file of weights."""
    return bool(_HUB_ID.match(source)) and not source.endswith((".safetensors", *SUFFIXES))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of PyTorch's own kind, under the names they have there.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors.
    """
    return load_state_dict(path) if path.suffix in SUFFIXES else checkpoints.load(path)


def open_checkpoint(source: str | Path, store: "Store") -> Checkpoint:
    """Open the visual tower of a model, wherever it lies; a PyTorch file is first converted into the store, once.

    Raises:
        UserError: it cannot be found or read, or must be converted and the store has no folder.
    """
    path = find_weights(source)
    if path.suffix not in SUFFIXES:
        return Checkpoint.open(path)
    if store.root is None:
        raise UserError(
            f"{path} is converted to safetensors first, for which paths.store must name a folder."
        )
    key = {"sha256": checkpoints.file_hash(path), "version": _VERSION}
    store.ensure("converted", key, lambda: Checkpoint.canonical(load_state_dict(path), path))
    return Checkpoint(store.file("converted", key), store.content_hash)


def downloaded(repository: str, file: str) -> Path:
    """Return a repository's file from the hub's cache, downloading it the first time.

    The one place here that may use a network. Raises what huggingface_hub raises.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file))


def revision(path: Path) -> str | None:
    """Return the commit of a file in the hub's cache, 40 hexadecimal digits; None for any other file."""
    return next((part for part in path.parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)


def _from_hub(repository: str) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    for file in WEIGHTS:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in WEIGHTS:
        try:
            return downloaded(repository, file)
        except RepositoryNotFoundError as error:
            raise UserError(
                f"There is neither a file {repository} here nor a public model of that name on the Hugging Face hub. "
                "Check the name; a private model needs `hf auth login`."
            ) from error
        except (EntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            # A file that the repository has not, unless it is only the cache that has not.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise UserError(
                f"{repository} is neither here nor in the Hugging Face cache of this machine, and the hub cannot be "
                f"reached ({type(error).__name__}). Run `hf download {repository}` where there is a network, then set "
                "HF_HOME to a copy of that cache, or give the path of the downloaded file."
            ) from error
    raise UserError(f"The repository {repository} holds none of {', '.join(WEIGHTS)}: give the file itself.")
