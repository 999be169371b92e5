"""The preprocessing described by a model's files: Hugging Face's `preprocessor_config.json`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeability.checks import is_count, is_number
from mergeability.errors import UserError
from mergeability.files import read_json
from mergeability.models.clip import ClipModel

FILE = "preprocessor_config.json"


def check_preprocessing(weights: Path, model: ClipModel) -> None:
    """Check that the preprocessing file next to the weights, if any, agrees with the model's preprocessing.

    Without this file, the model's preprocessing is assumed to be correct.

    Args:
        weights: the file of the weights.
        model: the architecture with its image size, mean and standard deviation.

    Raises:
        UserError: the file is not valid, or describes another size, mean or standard deviation.
    """
    path = weights.parent / FILE
    if not path.is_file():
        return
    described = read_json(path, cure="Download it again, or remove it.")
    if not isinstance(described, dict):
        raise UserError(f"{path} does not describe preprocessing. Download it again, or remove it.")
    size = _size(described)
    if size is not None and size != model.image_size:
        raise UserError(
            f"{path} specifies images of {size} pixels, but model={model.name} uses {model.image_size}. Choose "
            f"a model=… for images of {size} pixels."
        )
    for key, own, option in (("image_mean", model.mean, "mean"), ("image_std", model.std, "std")):
        given = described.get(key)
        if given is None:
            continue
        values = given if isinstance(given, list) else [given] * len(own)
        same = len(values) == len(own) and all(
            is_number(a) and math.isclose(a, b, abs_tol=1e-4) for a, b in zip(values, own, strict=True)
        )
        if not same:
            raise UserError(
                f"{path} specifies {key}={given}, but model={model.name} normalises with {list(own)}. Set "
                f"model.{option}='{given}'."
            )


def _size(described: Mapping[str, Any]) -> int | None:
    """Return the side length of the crop or resize; None if unspecified."""
    for key in ("crop_size", "size"):
        value = described.get(key)
        if is_count(value):
            return value
        if isinstance(value, dict):
            found = value.get("height", value.get("shortest_edge"))
            if is_count(found):
                return found
    return None
