"""Check, without importing torch, whether a training run with the same settings has already finished."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeability.errors import UserError
from mergeability.files import digest, read_object


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List settings that differ, as `training.learning_rate (there 0.1, now 0.2)`."""
    here, there = flatten(ours), flatten(theirs)
    names = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
    return [f"{name} (there {there.get(name)!r}, now {here.get(name)!r})" for name in names]


def finished_card(
    folder: Path, settings: Mapping[str, Any], overwrite: bool = False
) -> dict[str, Any] | None:
    """Return the card of the finished training run that used the given settings; None if the model must be trained.

    Raises:
        UserError: the folder contains a finished model with other settings.
    """
    card = None if overwrite else read_object(folder / "card.json")
    if card is None or not _is_whole(folder, card):
        return None
    if card.get("settings_hash") == digest(settings):
        return card
    theirs = card.get("settings")
    changed = "; ".join(differing(settings, theirs if isinstance(theirs, Mapping) else {})[:6])
    raise UserError(
        f"{folder} contains a model trained with other settings: {changed}. "
        "To keep that model and train another one, set variant=<name>; to replace it, set overwrite=true."
    )


def _is_whole(folder: Path, card: Mapping[str, Any]) -> bool:
    """Return whether all files named in the card exist, because the weights may have been deleted."""
    names = ["model.safetensors", *(["head.safetensors"] if "head_sha256" in card else [])]
    return all((folder / name).is_file() for name in names)
