"""Implement `train.py`: fine-tune, pretrain or import one model, or check a task's images."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mergeability.commands.folders import run_folder
from mergeability.commands.loggers import open_loggers
from mergeability.commands.record import settings
from mergeability.commands.run import prepare
from mergeability.commands.settings import check_settings
from mergeability.errors import UserError
from mergeability.files import read_object

logger = logging.getLogger(__name__)


def job(cfg: DictConfig) -> None:
    """Train the model unless it already exists; on request, check the task's images instead."""
    prepare()
    if cfg.doctor:
        examine(cfg)
    else:
        fine_tune(cfg)


def fine_tune(cfg: DictConfig) -> dict[str, Any] | None:
    """Train the model described by a configuration of `train.py`, unless the trained model already exists.

    Returns:
        The card of the model; None if the model already existed.

    Raises:
        UserError: there is no base model, a model with other settings exists, or the training fails.
    """
    check_settings(cfg)
    from hydra.utils import instantiate

    from mergeability.finetuning.resume import finished_card

    folder, known = Path(cfg.folder), settings(cfg)
    if cfg.base is not None:
        known["base_sha256"] = base_hash(cfg)
    if cfg.get("source") is not None:
        known["source_sha256"] = source_hash(cfg.source)
    if finished_card(folder, known, overwrite=cfg.overwrite):
        logger.info("Already finished: %s (overwrite=true trains again)", folder)
        return None
    quiet_lightning()
    with open_loggers(cfg) as opened:
        train = instantiate(cfg.run, _partial_=True, _convert_="all")
        card = train(loggers=opened, record=known)
        if opened and card:
            from mergeability.reporting.tracking import log_training

            log_training(opened, card, folder)
    return card


# Messages that Lightning prints for every small model, and that do not help the user.
_LIGHTNING_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The number of training batches .* is smaller than the logging interval",
    r"The '.*_dataloader' does not have many workers",
    r"Checkpoint directory .* exists and is not empty",
)


def quiet_lightning() -> None:
    """Suppress Lightning's tips and harmless warnings in the terminal."""
    import lightning.pytorch  # noqa: F401  (it sets its level when imported)

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _LIGHTNING_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def examine(cfg: DictConfig) -> None:
    """Check the task's images, and write the report to the run folder.

    Raises:
        UserError: the images have problems.
    """
    check_settings(cfg)
    from hydra.utils import instantiate

    from mergeability.data.doctor import examine

    examine(instantiate(cfg.task, _convert_="all"), run_folder())


def base_hash(cfg: DictConfig) -> str:
    """Return the hash of the base model of a training run; create the base model if it does not exist.

    The base model is created from published weights, a file, or a seed.

    Raises:
        UserError: the base model does not exist and cannot be downloaded.
    """
    folder = Path(cfg.base)
    card = read_object(folder / "card.json")
    pretrained = cfg.model.get("pretrained")
    if card is None and pretrained is None and cfg.model.get("base_command"):
        raise UserError(f"There is no base model at {folder}. Run: {cfg.model.base_command}")
    # Checked before heavy imports, because the base model usually exists with the right weights.
    settings = {} if card is None else card.get("settings", {})
    if not isinstance(settings, Mapping) or (card is not None and not isinstance(card.get("sha256"), str)):
        raise UserError(
            f"{folder / 'card.json'} is not the card of a model. Delete it and repeat the command that created it."
        )
    if card is None or settings.get("pretrained", pretrained) != pretrained:
        from hydra.utils import instantiate

        from mergeability.models.base import check_origin, fetch_base

        model = instantiate(cfg.model, _convert_="all")
        card = card or fetch_base(folder, model)
        check_origin(folder, card, model)
    return card["sha256"]


def source_hash(source: str) -> str:
    """Return the content hash of an external model; moving the model does not change the hash."""
    from mergeability.weights.checkpoints import file_hash
    from mergeability.weights.hub import find_weights

    return file_hash(find_weights(source))
