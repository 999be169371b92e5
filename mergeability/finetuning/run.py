"""One fine-tuning run, from the base model to a finished checkpoint with its card."""

import contextlib
import errno
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from mergeability.data.inputs import SPLITS, Samples
from mergeability.data.tasks import Task
from mergeability.errors import UserError, one_line
from mergeability.files import digest, read_json, write_text
from mergeability.finetuning.data import TaskDataModule
from mergeability.finetuning.module import FineTuningModule, TrainingSettings
from mergeability.finetuning.penalties.base import Penalty
from mergeability.finetuning.state import state_fault
from mergeability.models.base import WEIGHTS, load_base
from mergeability.models.classify import accuracy
from mergeability.models.model import Model
from mergeability.provenance import provenance
from mergeability.store import Store
from mergeability.weights import checkpoints

logger = logging.getLogger(__name__)


def finetune(
    task: Task,
    model: Model,
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
    """Fine-tune the encoder on one task, and write the model and its model card.

    Writes `model.safetensors`, `head.safetensors` and, last, `card.json` to `folder`. A run that was killed continues
    after its last finished epoch, with the same batches and the same result.

    Args:
        task: the task to train on.
        model: the model whose encoder is trained.
        settings: the hyper-parameters.
        folder: folder of the new checkpoint.
        base_folder: folder of the base model's `model.safetensors`.
        penalty: a term added to the loss; None for plain fine-tuning.
        seed: seed of the order of the samples.
        trainer: more arguments for `lightning.pytorch.Trainer`.
        loggers: Lightning loggers.
        callbacks: more Lightning callbacks, such as a progress bar.
        record: JSON-able record of all settings that affect the result: written to the card, and compared before an
            interrupted run is continued.
        store: folder where resized images are cached; in memory when None.

    Returns:
        The card: hashes, settings, `accuracy` and `base_accuracy` in [0, 1] for each split, counts of images and
        parameters, seconds. Empty in all but the first of several processes.

    Raises:
        UserError: there is no base model; the task does not fit the model; training diverged; or the
            GPU's memory or the disk is full.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_clip, tiny_task
        >>> from mergeability.finetuning import TrainingSettings, finetune
        >>> model, settings = tiny_clip(), TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=4)
        >>> with TemporaryDirectory() as folder:
        ...     base = f"{folder}/base"
        ...     path = checkpoints.save(f"{base}/model.safetensors", model.build().state_dict())
        ...     card = finetune(tiny_task(), model, settings, f"{folder}/loops", base, trainer={"accelerator": "cpu"})
        >>> card["task"], sorted(card["accuracy"])
        ('loops', ['test', 'train', 'validation'])
    """
    folder, base_folder = Path(folder), Path(base_folder)
    record = dict(record or {})
    base = load_base(base_folder, model)
    with torch.inference_mode():
        head = model.head(base, task.class_names, task.templates)
    head = head.clone()
    encoder = model.encoder_of(base)
    cache = Store(store)
    splits = {name: model.samples(task, name, cache) for name in SPLITS}
    judged = {**splits, "train": _spread(splits["train"], settings.train_evaluation_images)}
    # With several processes, only the first one evaluates and writes files.
    first = rank_zero_only.rank == 0
    device = _device(trainer or {})
    before = _accuracies(encoder, head, model, judged, device) if first else {}
    module = FineTuningModule(encoder, head, model.preprocess, settings, penalty)
    began = time.monotonic()
    data = TaskDataModule(splits["train"], splits["validation"], settings.batch_size, seed)
    with _resources_named(settings, folder):
        devices = _fit(module, data, settings, folder, record, trainer or {}, loggers, callbacks)
    seconds = time.monotonic() - began
    if not first:
        return {}
    _check_finite(encoder, task, folder)
    after = _accuracies(encoder, head, model, judged, device)
    checkpoints.remove_card(folder)
    state = {f"{model.tensor_prefix}{name}": tensor for name, tensor in encoder.state_dict().items()}
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
        **({"left_out": remarks} if (remarks := model.task_remarks(task)) else {}),
        "parameters": {
            "encoder": sum(parameter.numel() for parameter in encoder.parameters()),
            "trained": sum(parameter.numel() for parameter in module.trained),
        },
        "seconds": round(seconds, 2),
        "images_per_second": round(module.images_seen * devices / seconds, 1),
        "devices": devices,
        "peak_memory_gib": peak_memory(),
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


def _spread(samples: Samples, count: int) -> Samples:
    """Select at most so many samples, evenly spaced, because datasets are sorted by class."""
    if len(samples) <= count:
        return samples
    return samples[torch.linspace(0, len(samples) - 1, count, dtype=torch.float64).long()]


def _device(options: Mapping[str, Any]) -> str:
    """Return the device to evaluate on: a GPU if the training uses one."""
    on_gpu = options.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def _accuracies(
    encoder: nn.Module, head: Tensor, model: Model, samples: Mapping[str, Samples], device: str
) -> dict[str, float]:
    """Measure the accuracy on each split; the encoder is back on the CPU afterwards."""
    encoder.to(device)
    try:
        return {name: accuracy(encoder, head, model.preprocess, part) for name, part in samples.items()}
    finally:
        encoder.to("cpu")


def _fit(
    module: FineTuningModule,
    data: TaskDataModule,
    settings: TrainingSettings,
    folder: Path,
    record: Mapping[str, Any],
    options: Mapping[str, Any],
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback | None],
) -> int:
    """Train; return on how many devices."""
    unfinished = folder / "unfinished"
    resume = _resume_from(unfinished, record, module)
    module.encoder.train()
    callbacks = [callback for callback in callbacks if callback is not None]
    callbacks += [LearningRateMonitor("step")] if loggers else []
    trainer = _trainer(
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        logger=list(loggers) or False,
        callbacks=[saver_of_each_epoch(unfinished), *callbacks],
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        default_root_dir=folder,
        use_distributed_sampler=False,
        **options,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit, but the commands handle KeyboardInterrupt themselves.
        raise KeyboardInterrupt from error
    return trainer.world_size


def _trainer(**options: Any) -> pl.Trainer:
    """Create a trainer. Errors of Lightning concern the options of `trainer`, because all others are fixed here."""
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(
            f"Lightning's Trainer rejects the settings of the group 'trainer': {reason}"
        ) from error


@contextlib.contextmanager
def _resources_named(settings: TrainingSettings, folder: Path) -> Iterator[None]:
    """Convert errors that users can resolve, such as a lack of memory or disk space, to a UserError.

    Raises:
        UserError: one of these errors occurred.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = settings.batch_size
        half = max(1, size // 2)
        advice = (
            f"training.batch_size={half} training.accumulate={-(-size * settings.accumulate // half)} makes the same "
            "steps in smaller parts, and "
        )
        raise UserError(
            f"Out of GPU memory with batch size {size}: {advice if size > 1 else ''}"
            "trainer.precision=bf16-mixed needs less."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _remove_damaged_state(folder / "unfinished")
        raise UserError(
            f"The disk of {folder} is full: the training state could not be saved ({error.strerror}). Free some "
            "space, or set paths.root to a folder on another disk, and start the same command again."
        ) from error


def _remove_damaged_state(unfinished: Path) -> None:
    for state in unfinished.glob("*.ckpt"):
        if not zipfile.is_zipfile(state):
            state.unlink()


def peak_memory() -> float | None:
    """Return the peak memory of this process in GiB, on the GPU if one is used; None if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return None if kilobytes is None else round(kilobytes / 2**20, 2)


def saver_of_each_epoch(folder: Path) -> ModelCheckpoint:
    """Save the state after each complete epoch to `last.ckpt`, from which training can continue."""
    return ModelCheckpoint(
        dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )


def _resume_from(unfinished: Path, record: Mapping[str, Any], module: nn.Module | None = None) -> Path | None:
    """Return the last epoch's state if it is complete and from this training run; otherwise clear the folder."""
    settings, state = unfinished / "settings.json", unfinished / "last.ckpt"
    if rank_zero_only.rank != 0:
        # The first process cleared the folder before it started this one.
        return state if state.is_file() else None
    if state.is_file() and _recorded(settings) == digest(record):
        # torch.save writes a zip archive; in a truncated file, the directory at its end is missing.
        if not zipfile.is_zipfile(state):
            logger.warning("%s is damaged: training starts from the beginning.", state)
        elif module is not None and (fault := state_fault(state, module)):
            logger.warning(
                "%s was not saved by this training run (%s): training starts from the beginning.",
                state,
                fault,
            )
        else:
            logger.info("Continuing the unfinished training in %s.", unfinished)
            return state
    shutil.rmtree(unfinished, ignore_errors=True)
    write_text(settings, json.dumps(digest(record)))
    return None


def _recorded(settings: Path) -> Any:
    """Return the settings hash of an unfinished training; None if it cannot be read."""
    try:
        return read_json(settings)
    except UserError:
        return None


def _check_finite(encoder: nn.Module, task: Task, folder: Path) -> None:
    for name, parameter in encoder.named_parameters():
        if not torch.isfinite(parameter).all():
            shutil.rmtree(folder / "unfinished", ignore_errors=True)
            raise UserError(
                f"Training on {task.name} diverged: {name} holds NaN or Inf. No model was saved. Choose a smaller "
                "training.learning_rate or reg.lambda."
            )
