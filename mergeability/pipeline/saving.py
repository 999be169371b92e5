"""Save a merged encoder and its model card; tensors have the names that open_clip or Hugging Face uses."""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.files import atomic_file, write_text
from mergeability.models.clip import CLIP_MEAN, CLIP_STD
from mergeability.pipeline import model_card
from mergeability.progress import Progress, no_progress
from mergeability.provenance import provenance
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import base_folder, checkpoints, hugging_face
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.lazy_state import LazyState, write_state

# Imported only for type checking, because merging starts twice as fast without pandas.
if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
HUGGING_FACE = "hf"
EXPORTS = (HUGGING_FACE,)

_WITHOUT_CONFIG = (
    f"The architecture's settings are not known here: copy {CONFIG} and {PREPROCESSOR} of the base model into this "
    "folder before transformers reads it."
)
_LONGEST_NAME = 100
_LONGEST_START = 80
_DIGITS = 16
# Allowance for the header of the weights, the card and two small files.
_BESIDE_WEIGHTS = 2**17


def save_merge(
    folder: Path,
    state: Mapping[str, Tensor],
    card: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    *,
    export: str | None = None,
    configuration: Mapping[str, Any] | None = None,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    base: Checkpoint | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Save a merged encoder in a separate folder; replace an existing folder.

    The weights are written to a temporary file first. Then an earlier card is removed, and the new one is written
    last, so an existing card means that all files are complete and belong to it.

    Args:
        folder: for `model.safetensors`, `card.json` and, for transformers, `config.json` and
            `preprocessor_config.json`. Made if need be.
        state: canonical name → tensor, in the dtypes to be written. Of a lazy state, at most two tensors are in memory.
        card: what `merge_card` returns, or a function that is called once the weights are written. The names used and
            the file's SHA-256 are added to it.
        export: "hf" for Hugging Face's names; None for canonical ones, which are open_clip's.
        configuration: open_clip's configuration of the model; None if unknown, as for bare checkpoints: then neither
            configuration file is written, and the card explains where to find them.
        mean: channel means for the normalisation of images.
        std: channel standard deviations for the normalisation of images.
        base: the base model. If it is a transformers folder, the merge is written under its names, with its
            other tensors, its configuration and its tokenizer, whatever `export` is.
        progress: wraps the loop over tensors.

    Returns:
        The path of the weights.

    Raises:
        UserError: an unknown export, an encoder or a configuration that transformers has no model for, or a disk
                that is full or not writable; an earlier result is then either complete or without a card.
    """
    # Prepare everything before the first change, so that a failure does not destroy an earlier result.
    files, copies = {}, {}
    described: dict[str, Any]
    if base is not None and base_folder.is_transformers(base):
        tensors, described = base_folder.as_stored(base, state), {"names": "transformers"}
        copies = {name: path.read_bytes() for name, path in base_folder.files_to_copy(base).items()}
    else:
        # An export renames views of all tensors, and its configuration depends on them.
        state = state if export is None else dict(state)
        tensors, described = _exported(state, export)
    if copies:
        pass
    elif config := _config(state, export, configuration):
        files = {
            CONFIG: config,
            PREPROCESSOR: hugging_face.preprocessor_config(config["image_size"], mean, std),
        }
    elif export == HUGGING_FACE:
        described["note"] = _WITHOUT_CONFIG
    _make(folder)
    path = folder / WEIGHTS
    with atomic_file(path) as temporary:
        sha256 = write_state(temporary, LazyState.of(tensors), {"format": "pt"}, progress)
        described = {**(card() if callable(card) else card), **described, "sha256": sha256}
        _make_room(folder)
        for name, content in copies.items():
            with atomic_file(folder / name) as beside:
                beside.write_bytes(content)
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
    if "merge" in described:
        opens = "transformers" if described["names"] != "open_clip" else None
        write_text(folder / model_card.NAME, model_card.model_card(described, opens))
    checkpoints.write_card(folder, described)
    return path


def merge_card(
    task_vectors: TaskVectors,
    description: Any,
    alpha: float | int,
    accuracies: Mapping[str, Mapping[str, Any]],
    *,
    alpha_from: str,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a JSON-compatible record of the parents, method and accuracy of a merge.

    Args:
        task_vectors: the models that were merged.
        description: the method and every option, as `merge_quality.describe` gives it.
        alpha: the scale.
        alpha_from: how the scale was chosen, such as "the method's own" or "tuned on validation images".
        accuracies: task → name → value, as `task_accuracies` returns it; an empty dict if nothing was evaluated.
        facts: more entries.

    Returns:
        `base_sha256`, `parents` (task → SHA-256 of its file), `merge`, `alpha`, `alpha_from`, `accuracies` (null
        where undefined), versions, commit and time, and the facts.
    """
    left_out = [str(one) for one in task_vectors.left_out] + list(task_vectors.notes)
    return {
        **(facts or {}),
        **({"left_out": left_out} if left_out else {}),
        "base_sha256": task_vectors.base_hash,
        "parents": dict(task_vectors.hashes),
        "merge": description,
        "alpha": float(alpha),
        "alpha_from": alpha_from,
        "accuracies": {
            task: {name: _json_number(value) for name, value in of_task.items()}
            for task, of_task in accuracies.items()
        },
        **provenance(),
    }


def task_accuracies(rows: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """Return the accuracies of one merge on each task, in the format of the model card.

    Args:
        rows: with `task` and at least one of `accuracy` (of the merge), `finetuned_accuracy`, `base_accuracy`,
            `norm_accuracy` (merged / fine-tuned) and `kept_gain`.

    Returns:
        Task → name of the column → value.
    """
    names = ("accuracy", "finetuned_accuracy", "base_accuracy", "norm_accuracy", "kept_gain")
    known = [name for name in names if name in rows.columns]
    return {str(row["task"]): {name: float(row[name]) for name in known} for row in rows.to_dict("records")}


def encoder_bytes(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> int:
    """Return the size in bytes of a saved encoder with the base's tensor shapes, including card and configuration.

    Args:
        checkpoint: the base model.
        dtype: dtype of all floating-point tensors; None for the checkpoint's own.
    """
    own = checkpoint.dtypes
    sizes = (
        math.prod(checkpoint.shapes[name])
        * (dtype if dtype is not None and own[name].is_floating_point else own[name]).itemsize
        for name in checkpoint.names
    )
    if base_folder.is_transformers(checkpoint):
        return base_folder.bytes_on_disk(checkpoint) + _BESIDE_WEIGHTS
    return sum(sizes) + _BESIDE_WEIGHTS


def check_space(folder: Path, merges: int, bytes_each: int) -> None:
    """Check that a folder's disk has enough free space to save all merges; call this before merging.

    Args:
        folder: the target folder; it need not exist yet.
        merges: number of merges to save.
        bytes_each: the size of one, from `encoder_bytes`.

    Raises:
        UserError: there is not enough space; the message contains the needed and the available GB (10⁹ bytes).
    """
    needed, free = merges * bytes_each, shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise UserError(
            f"Saving {merges} merges of {_gigabytes(bytes_each)} GB each requires {_gigabytes(needed)} GB,"
            f" but {folder} has {_gigabytes(free)} GB free. Choose fewer pairs with pairs=…, fewer methods,"
            " or hydra.run.dir=… on another disk."
        )


def check_export(
    checkpoint: Checkpoint, export: str | None, configuration: Mapping[str, Any] | None = None
) -> None:
    """Check before merging that merges of these models can be saved as requested.

    Args:
        checkpoint: the base model, of which only names, shapes and dtypes are used.
        export: argument of `save_merge`.
        configuration: argument of `save_merge`.

    Raises:
        UserError: an unknown export, an encoder or a configuration that transformers has no model for.
    """
    if export in (None, *EXPORTS) and base_folder.is_transformers(checkpoint):
        return
    shapes, dtypes = checkpoint.shapes, checkpoint.dtypes
    state = {name: torch.empty(shapes[name], dtype=dtypes[name], device="meta") for name in checkpoint.names}
    _exported(state, export)
    _config(state, export, configuration)


def merge_folder_name(tasks: Sequence[str]) -> str:
    """Return the folder name of a merge, such as "a+b": the names of its tasks in the given order.

    Names are unique: characters other than letters, digits and `_.-` are percent-encoded ("a/b" as "a%2Fb").
    A name above 100 characters is cut, and ends with `~` and a digest of all the names.
    """
    # `quote` leaves tildes and dots unchanged, but a tilde marks digests and a leading dot would hide the folder.
    name = "+".join(quote(task, safe="").replace("~", "%7E") for task in tasks)
    name = "%2E" + name[1:] if name.startswith(".") else name
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_START]}~{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}"


def _exported(state: Mapping[str, Tensor], export: str | None) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """Rename the tensors as requested, and return a description of the names for the card."""
    if export is None:
        return state, {"names": "open_clip"}
    if export not in EXPORTS:
        raise UserError(
            f"Expected export to be one of {', '.join(EXPORTS)}, or null for open_clip's names, got"
            f" {export!r}."
        )
    return hugging_face.renamed(state), {"names": "hugging_face"}


def _config(
    state: Mapping[str, Tensor], export: str | None, configuration: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if export != HUGGING_FACE or configuration is None:
        return None
    return hugging_face.vision_config(configuration, state)


def _make(folder: Path) -> None:
    with _writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _make_room(folder: Path) -> None:
    """Remove the card of an earlier merge, then files that the new merge may not have."""
    with _writing_into(folder):
        checkpoints.remove_card(folder)
        for name in (CONFIG, PREPROCESSOR, model_card.NAME):
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write into {folder}: {error.strerror or error}. Choose another place with hydra.run.dir=…."
        ) from error


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _json_number(value: Any) -> float | None:
    """Return a number for JSON, with undefined values as null."""
    return float(value) if math.isfinite(value) else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g}" if count < 1e11 else f"{count / 1e9:.0f}"
