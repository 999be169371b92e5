"""Find the weights of a model, given a file, a folder or an id on the Hugging Face Hub."""

import atexit
import logging
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights import adapter_settings, checkpoints
from mergeability.weights.adapter import AdaptedFile
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.folders import OTHERS, WEIGHTS, other_weights, weights_in
from mergeability.weights.names import VISUAL, read_names
from mergeability.weights.safetensors_file import TensorFile
from mergeability.weights.sharded import INDEX, ShardedFile, TensorSource, read_index
from mergeability.weights.torch_file import SUFFIXES, contents, load_state_dict

if TYPE_CHECKING:
    from mergeability.store import Store

logger = logging.getLogger(__name__)

# Configuration and tokenizer files, as transformers names them.
_FETCHED = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip
_COMPANION = re.compile(
    r"^((config|generation_config|preprocessor_config|processor_config|image_processor\w*|video_preprocessor_config"
    r"|special_tokens_map|added_tokens|tokenizer\w*|vocab\w*|chat_template)\.(json|txt|jinja|model)"
    r"|merges\.txt|\w+\.(model|tiktoken|bpe))$"
)
# Addresses, of which `Path` keeps one slash; drives of Windows have one letter.
_ADDRESS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.*)$")
_ON_HUB = re.compile(r"^(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1


def find_weights(source: str | Path) -> Path:
    """Return the path of the file that contains the weights of a model.

    Args:
        source: a file; a folder with one of `WEIGHTS`, an index of several files, or a LoRA adapter; or a hub id,
            `tanganke/clip-vit-base-patch16_svhn`. The hub is not used if a local path exists.

    Returns:
        The path of the file.

    Raises:
        UserError: there is no such file, folder or repository; or neither a network nor a copy in the hub's cache.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.weights.hub import find_weights
        >>> path = tiny_task_vectors(cars=[1, 0]).model("cars").path
        >>> find_weights(path) == path
        True
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return weights_in(path)
    if path.is_file():
        return path
    if address := _ADDRESS.match(str(source)):
        on_hub = _ON_HUB.match(address[2])
        cure = f"Give the id {on_hub[1]}." if on_hub else "Download the model, and give its path."
        raise UserError(f"Expected a path or an id on the Hugging Face hub, got the address {source}. {cure}")
    if not is_hub_id(str(source)):
        raise UserError(
            f"No checkpoint at {path}. Check the path, train the model with train.py, or give an id on the "
            "Hugging Face hub, "
            "<owner>/<name>."
        )
    return _from_hub(str(source))


def is_hub_id(source: str) -> bool:
    """Return whether a text has the form `owner/name` of a repository id and is not the name of a weights file.

    Args:
        source: a repository id or a path.

    Examples:
        >>> from mergeability.weights.hub import is_hub_id
        >>> is_hub_id("tanganke/clip-vit-base-patch16_svhn"), is_hub_id("models/svhn.safetensors")
        (True, False)
    """
    return bool(_HUB_ID.match(source)) and not source.endswith((".safetensors", *SUFFIXES))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one or more safetensors or PyTorch files, under their original names.

    Args:
        path: the file, or the index of several.

    Returns:
        Name in the file → tensor.

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors, or it is an adapter.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.weights.hub import read_tensors
        >>> path = tiny_task_vectors(cars=[1, 0]).model("cars").path
        >>> read_tensors(path)
        {'weight': tensor([65., 64.])}
    """
    _refuse_adapter(path)
    if not path.name.endswith(INDEX):
        return load_state_dict(path) if path.suffix in SUFFIXES else checkpoints.load(path)
    shards = sorted(set(read_index(path).values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read_tensors(path.parent / shard)
    return tensors


def open_source(source: str | Path, store: "Store") -> TensorSource:
    """Open the weights of a model under their original names; PyTorch files are converted once and kept in the store.

    Args:
        source: a file, a folder or a hub id, as `find_weights` takes it.
        store: where converted files are kept.

    Raises:
        UserError: it cannot be found or read, or is an adapter.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.store import Store
        >>> from mergeability.weights.hub import open_source
        >>> path = tiny_task_vectors(cars=[1, 0]).model("cars").path
        >>> list(open_source(path, Store()).entries)
        ['weight']
    """
    path = find_weights(source)
    _refuse_adapter(path)
    if path.name.endswith(INDEX):
        return ShardedFile(path, lambda shard: _plain(shard, store))
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}. Check the path.")
    return _plain(path, store)


def open_checkpoint(
    source: str | Path, store: "Store", base: str | Path | None = None, towers: str = VISUAL
) -> Checkpoint:
    """Open a model given by a path or hub id; a PyTorch file is converted once and kept in the store.

    Args:
        source: a file, a folder or a hub id, as `find_weights` takes it.
        store: store of converted files; without a folder, they are kept until the process ends.
        base: the model that an adapter was trained on, given the same way; None if there can be no adapter.
        towers: "both" to read the text tower of a CLIP as well as the visual one.

    Returns:
        The opened checkpoint.

    Raises:
        UserError: it cannot be found or read.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.store import Store
        >>> from mergeability.weights.hub import open_checkpoint
        >>> path = tiny_task_vectors(cars=[1, 0]).model("cars").path
        >>> open_checkpoint(path, Store()).shapes
        {'weight': (2,)}
    """
    path = find_weights(source)
    if path.name in adapter_settings.WEIGHTS:
        if base is None:
            _refuse_adapter(path)
        assert base is not None
        opened = Checkpoint.of(AdaptedFile(path.parent, open_source(base, store)), towers=towers)
    elif path.suffix in SUFFIXES:
        opened = _converted(path, store, towers)
    elif path.name.endswith(INDEX):
        opened = Checkpoint.of(open_source(path, store), towers=towers)
        opened.origin = path
    else:
        opened = Checkpoint.open(path, towers)
    if Path(source).expanduser().is_dir() and (others := other_weights(path, _companions(path))):
        opened.left_out["files"] = others
    return opened


def _converted(path: Path, store: "Store", towers: str) -> Checkpoint:
    """Open a PyTorch file through its converted visual tower, or completely if a tensor would be lost."""
    store, key = _conversion(path, store)

    def read() -> dict[str, Any]:
        names, unread = contents(path)
        return {"names": names, "unread": unread}

    # Dropped tensors are reported as for any other file.
    record = store.record("converted_names", {**key, "unread": True}, read)
    reading = read_names(record["names"])
    if towers != VISUAL or set(reading.left_out) - {"text tower"}:
        opened = Checkpoint.of(_plain(path, store), towers=towers)
    else:
        store.ensure("converted", key, lambda: Checkpoint.canonical(load_state_dict(path), path))
        opened = Checkpoint(store.file("converted", key), store.content_hash)
        opened.left_out = dict(reading.left_out)
    opened.origin = path
    if record["unread"]:
        opened.left_out["entries"] = record["unread"]
    return opened


def _plain(path: Path, store: "Store") -> TensorFile:
    """Open one file under its own names, converted to safetensors if need be."""
    if path.suffix not in SUFFIXES:
        return TensorFile(path)
    store, key = _conversion(path, store)
    store.ensure("converted_plain", key, lambda: load_state_dict(path))
    return store.file("converted_plain", key)


def _conversion(path: Path, store: "Store") -> "tuple[Store, dict[str, Any]]":
    """Return the store of a conversion, and its key."""
    kept = store if store.root is not None else _temporary(type(store))
    return kept, {"sha256": checkpoints.file_hash(path), "version": _VERSION}


@cache
def _temporary(kind: "type[Store]") -> "Store":
    """Return a store for conversions, because weights are read from files in pieces."""
    folder = tempfile.TemporaryDirectory(prefix="mergeability-converted-")
    atexit.register(folder.cleanup)
    return kind(folder.name)


def _refuse_adapter(path: Path) -> None:
    if path.name in adapter_settings.WEIGHTS:
        raise UserError(
            f"Expected complete weights, but {path.parent} is a LoRA adapter. Adapters are accepted only as"
            f" models that are compared or merged with their base. {adapter_settings.INSTEAD}"
        )


def downloaded(repository: str, file: str) -> Path:
    """Return the path of a repository's file in the hub's cache; download it if necessary.

    This is the only function in this module that may use the network. Exceptions of huggingface_hub are not converted.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file))


def companions(path: Path) -> list[Path]:
    """Return the configuration and tokenizer files in the folder of a weights file.

    Missing files of a repository on the hub are downloaded if there is a network.

    Args:
        path: a file of weights.

    Returns:
        The paths, sorted.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.weights.hub import companions
        >>> path = tiny_task_vectors(cars=[1, 0]).model("cars").path
        >>> companions(path)
        []
    """
    if revision(path) is not None:
        _fetch_companions(path)
    try:
        return sorted(one for one in path.parent.iterdir() if one.is_file() and _COMPANION.match(one.name))
    except OSError:
        return []


def _fetch_companions(path: Path) -> None:
    """Download the small files of a repository in the hub's cache, if they exist and the hub is reachable."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    owner = next((part for part in path.parts if part.startswith("models--")), None)
    if owner is None or (path.parent / "config.json").is_file():
        return
    repository = owner.removeprefix("models--").replace("--", "/", 1)
    for name in _FETCHED:
        try:
            downloaded(repository, name)
        except (EntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            logger.info("%s of %s is not available (%s).", name, repository, type(error).__name__)
            if name == "config.json":
                return


def revision(path: Path) -> str | None:
    """Return the commit of a file in the hub's cache, as 40 hexadecimal digits; None for other files.

    Args:
        path: path of the file.

    Examples:
        >>> from pathlib import Path
        >>> from mergeability.weights.hub import revision
        >>> revision(Path("hub/snapshots") / ("0" * 40) / "model.safetensors")[:8]
        '00000000'
        >>> revision(Path("model.safetensors")) is None
        True
    """
    return next((part for part in path.parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)


def _companions(path: Path) -> list[str]:
    """Return the names of the files that a file of a repository requires."""
    if path.name.endswith(INDEX):
        return sorted(set(read_index(path).values()))
    return [adapter_settings.CONFIG] if path.name in adapter_settings.WEIGHTS else []


def _from_hub(repository: str) -> Path:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    cached = {}
    for file in (*WEIGHTS, *OTHERS):
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            cached[file] = found
            break
    for file in cached or (*WEIGHTS, *OTHERS):
        try:
            path = Path(cached[file]) if file in cached else downloaded(repository, file)
            for other in _companions(path):
                if not (path.parent / other).is_file():
                    downloaded(repository, other)
            return path
        except RepositoryNotFoundError as error:
            raise UserError(
                f"There is neither a local file {repository} nor a public model of that name on the Hugging Face hub. "
                "Check the name; a private model needs `hf auth login`."
            ) from error
        except (EntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            # The repository lacks this file, so try the next name; LocalEntryNotFoundError means that only the cache
            # lacks it.
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue
            raise UserError(
                f"{repository} is neither a local file nor in the Hugging Face cache of this machine, and the"
                f" hub cannot be reached ({type(error).__name__}). Run `hf download {repository}` on a"
                " machine with a network and set HF_HOME to a copy of its cache, or give the path of the"
                " downloaded file."
            ) from error
    raise UserError(
        f"The repository {repository} contains none of {', '.join(WEIGHTS)}. Give the path of a file."
    )
