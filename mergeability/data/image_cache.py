"""Images prepared once: resized to what a model takes, kept in the store, and mapped into memory afterwards."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from mergeability.data.sources import Images, Split, check_split
from mergeability.data.tasks import Task
from mergeability.store import Store

# Part of the store's key: raise it when what is stored changes meaning.
_VERSION = 1
# Images that are resized at a time.
_BATCH = 256


def prepared(
    task: Task, split: Split, resize: Callable[[Tensor], Tensor], image_size: int, store: Store
) -> Images:
    """Return a split's images resized to the model's square, as uint8.

    The first time they are drawn or decoded, resized and filed; from then on the file is mapped, so that only
    what is looked at is read. A source without an `identity` is asked for its images each time, and what was
    resized is found by their content.

    Args:
        task: whose images.
        split: which of them.
        resize: uint8 images of any size → uint8 images of the model's size.
        image_size: that size: with the images it determines the result.
        store: where they are kept; in memory nothing is filed.

    Raises:
        UserError: the split is empty or unknown, or a label has no class name.
    """
    check_split(split)
    if store.root is None:
        return _resized(task.split(split), resize, image_size)
    describe = getattr(task.source, "identity", None)
    if describe is None:
        loaded = task.split(split)
        content: dict[str, Any] = {"content": loaded.fingerprint}
    else:
        loaded, content = None, describe(split)
    key = {"images": content, "size": image_size, "resized_by": _resizing(), "version": _VERSION}
    made: list[Images] = []

    def tensors() -> dict[str, Tensor]:
        made.append(_resized(task.split(split) if loaded is None else loaded, resize, image_size))
        return {"images": made[0].images, "labels": made[0].labels}

    store.ensure("images", key, tensors)
    file = store.file("images", key)
    images, labels = file.mapped("images"), file.tensor("labels")
    record = store.record(
        "image_fingerprint",
        key,
        lambda: {"sha256": (made[0] if made else Images(images, labels)).fingerprint},
    )
    return task.checked(Images(images, labels, record["sha256"]), split)


def _resized(images: Images, resize: Callable[[Tensor], Tensor], size: int) -> Images:
    if images.images.shape[-2:] == (size, size):
        return images
    # Filled in place: parts put together at the end would need the memory twice.
    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for part, batch in zip(resized.split(_BATCH), images.images.split(_BATCH), strict=True):
        part.copy_(resize(batch))
    return Images(resized, images.labels)


def _resizing() -> dict[str, str]:
    """Name what resizes: another version may round a pixel to the other side."""
    return {library: version(library) for library in ("torch", "torchvision")}
