"""The base model from which fine-tuning starts: a CLIP model with both towers in `<checkpoints>/<model>/base/`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeability.errors import UserError
from mergeability.files import digest
from mergeability.models.model import Model
from mergeability.provenance import provenance
from mergeability.weights import checkpoints
from mergeability.weights.hub import find_weights

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"


def save_base(
    folder: Path, model: Model, base: "nn.Module", settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict:
    """Write the weights and the card of a base model; return the card."""
    checkpoints.remove_card(folder)
    path = checkpoints.save(folder / WEIGHTS, base.state_dict())
    card = {
        "model": model.name,
        "sha256": checkpoints.file_hash(path),
        "settings": settings,
        "settings_hash": digest(settings),
        **facts,
        **provenance(),
    }
    checkpoints.write_card(folder, card)
    return card


def load_base(folder: Path, model: Model) -> "nn.Module":
    """Build the base model in evaluation mode and load its weights, whose names and shapes must match the model.

    Raises:
        UserError: the base model does not exist, or has another architecture.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"No base model at {path}. Run train.py, which creates or downloads it.")
    base = model.architecture_only()
    given, own = checkpoints.load(path), base.state_dict()
    wrong = [name for name in own.keys() | given.keys() if name not in own or name not in given]
    wrong = wrong or [name for name in own if own[name].shape != given[name].shape]
    if wrong:
        raise UserError(
            f"{path} does not fit model={model.name}: {len(wrong)} tensors differ, such as '{min(wrong)}'. It was "
            "created with another architecture: create it again with overwrite=true."
        )
    base.load_state_dict(given)
    return base.eval()


def fetch_base(folder: Path, model: Model) -> dict[str, Any]:
    """Create the base model if it does not exist: from published weights or a file, or at random with seed 0.

    Both towers of a CLIP are kept.

    Returns:
        The card.

    Raises:
        UserError: the weights cannot be downloaded, or do not fit the architecture.
    """
    try:
        base = model.build()
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Cannot fetch the weights {model.pretrained!r} of {model.name} ({error.__class__.__name__}): the "
            f"first use requires a network connection. Copy {folder} from a machine that has it, or set "
            "model.pretrained=<path> to a file that contains both towers."
        ) from error
    if model.pretrained is None:
        logger.warning(
            "model.pretrained=null: the base model %s has random weights and is only for testing.", folder
        )
    return save_base(
        folder, model, base, _origin(model), {"left_out": model.remarks} if model.remarks else {}
    )


def check_origin(folder: Path, card: Mapping[str, Any], model: Model) -> None:
    """Check that the base model in a folder has the pretrained weights that `model` specifies.

    Raises:
        UserError: it has other weights, such as random ones from a test run.
    """
    kept = card.get("settings", {})
    if "pretrained" not in kept:
        return  # The base was pretrained here, as recorded in its card.
    if differs := [name for name, value in _origin(model).items() if kept.get(name) != value]:
        told = ", ".join(f"{name}={kept.get(name)}" for name in differs)
        raise UserError(
            f"{folder} contains a base model with {told}, not with pretrained={model.pretrained}. Choose another "
            "model.name or paths.root, or delete this folder."
        )


def _origin(model: Model) -> dict[str, Any]:
    """Return the source of a base model's weights as a JSON-able record."""
    if model.is_from_file:
        path = find_weights(str(model.pretrained))
        # Identified by content, because the path may differ on another machine.
        return {"pretrained": "file", "pretrained_sha256": checkpoints.file_hash(path)}
    return {"pretrained": model.pretrained}


def pretrain_base(
    folder: Path | str,
    model: Model,
    pretrain: Callable[..., "nn.Module"],
    *,
    loggers: Sequence["Logger"] = (),
    callbacks: Sequence["Callback | None"] = (),
    accelerator: str = "auto",
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Pretrain a base model by calling a given function, and write the model and its card.

    Args:
        folder: folder of the base model.
        model: the architecture.
        pretrain: called with the model, `logger`, `callbacks` and `accelerator`; returns the trained CLIP.
        loggers: Lightning loggers.
        callbacks: more Lightning callbacks; None is left out.
        accelerator: Lightning's accelerator, such as "cpu" or "gpu".
        record: JSON-able record of the settings, for the card.

    Returns:
        The card.

    Examples:
        >>> from functools import partial
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.models import pretrain
        >>> from mergeability.models.base import pretrain_base
        >>> options = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1, "seed": 0}
        >>> short = partial(pretrain, subjects=["loops"], images_per_subject=4, **options)
        >>> with TemporaryDirectory() as folder:
        ...     card = pretrain_base(folder, tiny_clip(), short, accelerator="cpu")
        ...     print(card["model"])
        tiny
    """
    began = time.monotonic()
    try:
        callbacks = [callback for callback in callbacks if callback is not None]
        clip = pretrain(model, logger=list(loggers), callbacks=callbacks, accelerator=accelerator)
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit, but the commands handle KeyboardInterrupt themselves.
        raise KeyboardInterrupt from error
    seconds = round(time.monotonic() - began, 1)
    card = save_base(Path(folder), model, clip.eval(), record or {}, {"seconds": seconds})
    logger.info("Created base model %s in %s s: %s", model.name, seconds, folder)
    return card
