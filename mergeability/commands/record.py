"""Collect the settings that determine a checkpoint; the checkpoint's card contains a hash of them."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from mergeability.errors import UserError
from mergeability.provenance import with_published_names

# Keys that do not affect the checkpoint: they only suggest values for `training`, or are comments.
_ADVICE = {
    "task": ("epochs", "expected_accuracy"),
    "model": ("learning_rate", "batch_size", "base_command"),
    "trainer": ("accelerator", "log_every_n_steps"),
}


# Settings added after the first release, with their defaults. Default values are omitted from the record, so that
# the hashes of older trainings stay valid.
_LATER: dict[str, dict[str, Any]] = {
    "training": {"optimizer": "adamw", "momentum": 0.9, "compile": False},
    # Each device processes its own batches, so the number of devices changes the training.
    "trainer": {"devices": 1},
}


def plain(config: Any) -> Any:
    """Convert a node of the configuration to plain containers, with interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Return all settings that determine a checkpoint, as plain containers.

    Raises:
        UserError: a strength is set without a penalty.
    """
    found: dict[str, Any] = plain(cfg.settings)
    for group, names in _ADVICE.items():
        found[group] = {name: value for name, value in (found[group] or {}).items() if name not in names}
    for group, former in _LATER.items():
        for name, value in former.items():
            if found[group] is not None and found[group].get(name) == value:
                del found[group][name]
    strength = found["reg"].get("lambda")
    if found["reg"]["name"] == "none" and strength != 0:
        raise UserError(
            f"reg=none is plain fine-tuning and does not support reg.lambda={strength}. Choose a penalty with reg=…."
        )
    if strength == 0:
        found["reg"] = {"name": "none", "lambda": 0}
    return with_published_names(found)
