"""One fine-tuning run, from the base model to a finished checkpoint with its card."""

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn

from mergeability import checkpoints
from mergeability.data.image_cache import prepared
from mergeability.data.tasks import SPLITS, Images, Task
from mergeability.errors import UserError
from mergeability.finetuning.datamodule import TaskDataModule
from mergeability.finetuning.module import FineTuningModule, TrainingSettings
from mergeability.finetuning.objective import Penalty
from mergeability.models.base import WEIGHTS, load_base
from mergeability.models.classify import accuracy
from mergeability.models.clip import ClipModel
from mergeability.models.zero_shot import zero_shot_head
from mergeability.provenance import provenance
from mergeability.store import Store, digest, write_text

logger = logging.getLogger(__name__)


def finetune(
    task: Task,
    model: ClipModel,
    settings: TrainingSettings,
    folder: Path | str,
    base_folder: Path | str,
    *,
    penalty: Penalty | None = None,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback | None] = (),
    record: Mapping[str, Any] | None = None,
    store: Path | str | None = None,
) -> dict[str, Any]:
    """Fine-tune the visual encoder on one task; return the card.

    Leaves `model.safetensors`, `head.safetensors` and, last, `card.json` in `folder`. A run that was killed
    continues after its last finished epoch, with the same batches and the same result.

    Args:
        task: what to learn.
        model: the CLIP whose visual encoder learns it.
        settings: the recipe.
        folder: where the checkpoint goes.
        base_folder: where the base model lies.
        penalty: a term beside the loss.
        seed: of the order of the images.
        trainer: more arguments for `lightning.pytorch.Trainer`.
        loggers: Lightning loggers.
        callbacks: more Lightning callbacks, such as a progress bar.
        record: all settings that matter, for the card and for telling whether it is the same training.
        store: folder where images are kept, resized to what the model takes; in memory when None.

    Raises:
        UserError: no base model; the task's images are not there or not as configured; training diverged.
    """
    folder, base_folder = Path(folder), Path(base_folder)
    record = dict(record or {})
    clip = load_base(base_folder, model)
    with torch.inference_mode():
        head = zero_shot_head(clip, model.tokenize, task.class_names, task.templates)
    head = head.clone()
    encoder = clip.visual
    images = Store(store)
    splits = {name: prepared(task, name, model.resize, model.image_size, images) for name in SPLITS}
    judged = {**splits, "train": _spread(splits["train"], settings.train_evaluation_images)}
    before = {name: accuracy(encoder, head, model.preprocess, images) for name, images in judged.items()}
    module = FineTuningModule(encoder, head, model.preprocess, settings, penalty)
    began = time.monotonic()
    data = TaskDataModule(splits["train"], splits["validation"], settings.batch_size, seed)
    _fit(module, data, settings, folder, record, trainer or {}, loggers, callbacks)
    seconds = time.monotonic() - began
    _check_finite(encoder, task, folder)
    after = {name: accuracy(encoder, head, model.preprocess, images) for name, images in judged.items()}
    checkpoints.remove_card(folder)
    state = {f"{checkpoints.PREFIX}{name}": tensor for name, tensor in encoder.state_dict().items()}
    card = {
        "task": task.name,
        "model": model.name,
        "base_sha256": checkpoints.file_hash(base_folder / WEIGHTS),
        "sha256": checkpoints.file_hash(checkpoints.save(folder / "model.safetensors", state)),
        "head_sha256": checkpoints.file_hash(checkpoints.save(folder / "head.safetensors", {"head": head})),
        "seed": seed,
        "settings": record,
        "settings_hash": digest(record),
        "accuracy": after,
        "base_accuracy": before,
        "expected_accuracy": task.expected_accuracy,
        "images": {
            name: {"count": len(found), "sha256": found.fingerprint} for name, found in splits.items()
        },
        "seconds": round(seconds, 2),
        "images_per_second": round(module.images_seen / seconds, 1),
        **provenance(),
    }
    checkpoints.write_card(folder, card)
    shutil.rmtree(folder / "unfinished", ignore_errors=True)
    logger.info(
        "%s: test accuracy %.1f %% (base model %.1f %%) after %.1f s: %s",
        task.name,
        100 * after["test"],
        100 * before["test"],
        seconds,
        folder,
    )
    return card


def _spread(images: Images, count: int) -> Images:
    """Keep that many images at most, evenly spread: datasets are sorted by class, and the first would be of few."""
    if len(images) <= count:
        return images
    return images[torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()]


def _fit(
    module: FineTuningModule,
    data: TaskDataModule,
    settings: TrainingSettings,
    folder: Path,
    record: Mapping[str, Any],
    options: Mapping[str, Any],
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback | None],
) -> None:
    unfinished = folder / "unfinished"
    resume = _resume_from(unfinished, record)
    module.encoder.train()
    callbacks = [callback for callback in callbacks if callback is not None]
    trainer = pl.Trainer(
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        logger=list(loggers) or False,
        callbacks=[saver_of_each_epoch(unfinished), *callbacks],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        default_root_dir=folder,
        **options,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit; the commands have their own way to end on it.
        raise KeyboardInterrupt from error


def saver_of_each_epoch(folder: Path) -> ModelCheckpoint:
    """Keep the state after the last whole epoch in `last.ckpt`; training continues from there."""
    return ModelCheckpoint(
        dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )


def _resume_from(unfinished: Path, record: Mapping[str, Any]) -> Path | None:
    """Return the last epoch's state if it is whole and of these settings; clear the folder otherwise."""
    settings, state = unfinished / "settings.json", unfinished / "last.ckpt"
    if settings.is_file() and state.is_file() and json.loads(settings.read_text()) == digest(record):
        if zipfile.is_zipfile(state):  # What torch.save writes; the directory at its end is lost first.
            logger.info("Continuing the unfinished training in %s.", unfinished)
            return state
        logger.warning("%s is damaged: training starts over.", state)
    shutil.rmtree(unfinished, ignore_errors=True)
    write_text(settings, json.dumps(digest(record)))
    return None


def _check_finite(encoder: nn.Module, task: Task, folder: Path) -> None:
    for name, parameter in encoder.named_parameters():
        if not torch.isfinite(parameter).all():
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            raise UserError(
                f"Training on {task.name} diverged: {name} holds NaN or Inf. Nothing was kept; take a smaller "
                "training.learning_rate or reg.lambda."
            )
