"""Import an encoder that was fine-tuned elsewhere: check, rename and hash its tensors.

The result has the format of a training's folder, with `card.json`, so an analysis of tasks finds it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mergeability.data.image_cache import prepared
from mergeability.data.inputs import Images
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.models.base import WEIGHTS, load_base
from mergeability.models.classify import accuracy
from mergeability.models.clip import ClipModel
from mergeability.models.zero_shot import zero_shot_head
from mergeability.pipeline.saving import save_merge
from mergeability.provenance import provenance
from mergeability.store import Store
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import PREFIX, PROJECTION, Checkpoint
from mergeability.weights.encoder_state import encoder_state
from mergeability.weights.hub import find_weights, read_tensors, revision
from mergeability.weights.names import layout_name
from mergeability.weights.torch_file import SUFFIXES
from mergeability.weights.whole_clip import check_same

if TYPE_CHECKING:
    from open_clip import CLIP

logger = logging.getLogger(__name__)


def import_checkpoint(
    source: str | Path,
    folder: str | Path,
    model: ClipModel,
    *,
    task: Task | None = None,
    base_folder: str | Path | None = None,
    export: str | None = None,
    evaluate: bool = False,
    store: Path | str | None = None,
    warn_above: float | int = 0.5,
    refuse_above: float | int = 2.0,
    loggers: Sequence[object] = (),
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Import a fine-tuned visual encoder from a file, a folder or the Hugging Face Hub.

    Writes `model.safetensors` (canonical names, original dtypes), with a task `head.safetensors`, and, last,
    `card.json` with the source, the naming scheme, the commit on the hub, and the SHA-256 of both files.

    Args:
        source: a file, a folder or a hub id: open_clip's names with or without `visual.`, `model.visual.` or
            `module.visual.`, or Hugging Face's of any version; safetensors, or a PyTorch file with only
            tensors. A text tower is ignored.
        folder: folder of the imported model.
        model: the architecture it must be.
        task: the task of the model, for the zero-shot head from the base's text tower.
        base_folder: the base of the model; a missing projection is copied from it.
        export: "hf" writes Hugging Face's names and their two configuration files.
        evaluate: whether to measure the test accuracy of the model and of the base; needs the task's images.
        store: folder of the cache of resized images; in memory when None.
        warn_above: ‖τ‖/‖θ0‖ above which a warning suggests that the base is wrong.
        refuse_above: ‖τ‖/‖θ0‖ above which an error is raised.
        loggers: not used; part of the interface of `run` nodes.
        record: settings for the card.

    Returns:
        The card.

    Raises:
        UserError: evaluation without a task, or a task without a base; the file cannot be found or read or holds more
            than tensors; names are unknown or missing, or shapes differ; or the model has another base.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.pipeline.importing import import_checkpoint
        >>> model = tiny_clip()
        >>> with TemporaryDirectory() as folder:
        ...     path = checkpoints.save(f"{folder}/mine.safetensors", model.build().visual.state_dict())
        ...     card = import_checkpoint(path, f"{folder}/imported", model)
        ...     print(card["model"], len(checkpoints.Checkpoint.open(f"{folder}/imported/model.safetensors").names))
        tiny 20
    """
    if not isinstance(model, ClipModel):
        raise UserError(
            "Only image models can be imported, but model= selects a model that reads texts. Set model= to the "
            "architecture of the model in the file, such as model=vit_b16."
        )
    if evaluate and task is None:
        raise UserError(
            "evaluate=True measures the accuracy on a task's test images, but no task is given. Give a task, or remove "
            "evaluate."
        )
    if task is not None and base_folder is None:
        raise UserError(
            f"The zero-shot head of '{task.name}' requires the base's text tower, but no base is given. Give"
            " the base from which the model was fine-tuned, or remove the task."
        )
    folder, path = Path(folder), find_weights(source)
    tensors = read_tensors(path)
    state = Checkpoint.canonical(tensors, path)
    clip = (
        model.architecture_only()
        if base_folder is None
        else cast("CLIP", load_base(Path(base_folder), model))
    )
    own = {f"{PREFIX}{name}": tensor for name, tensor in clip.visual.state_dict().items()}
    if base_folder is not None and PROJECTION in own:
        state.setdefault(PROJECTION, own[PROJECTION])
    # Batch counts do not affect a model, and old files lack them.
    counts = frozenset(name for name in own if name.endswith("num_batches_tracked"))
    check_same(own, state, str(path), model.name, optional=counts)
    state = {**{name: own[name] for name in counts if name not in state}, **state}
    card: dict[str, Any] = {
        "task": None if task is None else task.name,
        "model": model.name,
        "source": str(source) if revision(path) else path.name,
        "source_format": f"{'PyTorch' if path.suffix in SUFFIXES else 'safetensors'}, {layout_name(tensors)}",
        "source_sha256": checkpoints.file_hash(path),
        "source_revision": revision(path),
        "settings": dict(record or {}),
        "settings_hash": digest(dict(record or {})),
    }
    if base_folder is not None:
        card["base_sha256"] = checkpoints.file_hash(Path(base_folder) / WEIGHTS)
        card["relative_norm"] = _relative_norm(state, own, path, warn_above, refuse_above)
    checkpoints.remove_card(folder)
    if task is not None:
        head = zero_shot_head(clip, model.tokenize, task.class_names, task.templates).clone()
        saved = checkpoints.save(folder / "head.safetensors", {"head": head})
        card["head_sha256"] = checkpoints.file_hash(saved)
        card["expected_accuracy"] = task.expected_accuracy
        if evaluate:
            test = prepared(task, "test", model.resize, model.image_size, Store(store))
            card |= _accuracies(clip, state, head, model, test)
    configuration = model.configuration
    save_merge(
        folder,
        state,
        {**card, **provenance()},
        export=export,
        configuration=configuration,
        mean=model.mean,
        std=model.std,
    )
    logger.info("Imported %s: %s", card["source"], folder)
    return checkpoints.read_card(folder) or {}


def _relative_norm(
    state: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    path: Path,
    warn_above: float | int,
    refuse_above: float | int,
) -> float:
    """Compute ‖τ‖/‖θ0‖, which is a few per cent after fine-tuning; raise an error or warn if it is far larger."""
    weights = [name for name in state if state[name].is_floating_point() and "running_" not in name]
    change = sum((state[n].double() - base[n].double()).square().sum().item() for n in weights) ** 0.5
    length = sum(base[name].double().square().sum().item() for name in weights) ** 0.5
    relative = change / length
    if relative > refuse_above:
        raise UserError(
            f"{path} was not fine-tuned from this base: the norm of its task vector is {relative:.3g} times"
            f" the norm of the base, but at most {refuse_above:g} is accepted. Give the base from which it"
            " was fine-tuned, or base=null."
        )
    if relative > warn_above:
        logger.warning(
            "The norm of the task vector of %s is %.3g times the norm of the base. Check that the model was"
            " fine-tuned from this base.",
            path,
            relative,
        )
    return relative


@torch.no_grad()
def _accuracies(
    clip: "CLIP", state: Mapping[str, Tensor], head: Tensor, model: ClipModel, test: Images
) -> dict[str, dict[str, float]]:
    """Measure the base and then the model on test images; the encoder keeps the model's weights."""
    before = accuracy(clip.visual, head, model.preprocess, test)
    clip.visual.load_state_dict(encoder_state(clip.visual, state, model.name), strict=False)
    after = accuracy(clip.visual, head, model.preprocess, test)
    return {"accuracy": {"test": after}, "base_accuracy": {"test": before}}
