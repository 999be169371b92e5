"""Images prepared once: resized to what a model takes, kept in the store, and mapped into memory afterwards."""

import hashlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mergeability.data.inputs import Images, Split, Streamed, check_split
from mergeability.data.tasks import Task
from mergeability.progress import track
from mergeability.store import Store
from mergeability.weights.safetensors_file import TensorFile, write_rows

Resize = Callable[[Tensor], Tensor]

# Part of the store's key: raise it when what is stored changes meaning.
_VERSION = 1
# Images that are resized at a time.
_BATCH = 256
# Bytes that are hashed at a time.
_READ = 64 * 2**20


def prepared(task: Task, split: Split, resize: Resize, image_size: int, store: Store) -> Images:
    """Return a split's images resized to the model's square, as uint8.

    The first time they are drawn or decoded, resized and filed; from then on the file is mapped, so that only
    what is looked at is read. Real images, of any sizes and in any number, are decoded in threads and written a batch
    at a time. A source without an `identity` is asked for its images each time, and what was
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
        return _in_memory(task, split, resize, image_size)
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

    if isinstance(task.source, Streamed):
        store.ensure_written("images", key, lambda path: _write(path, task, split, resize, image_size))
    else:
        store.ensure("images", key, tensors)
    file = store.file("images", key)
    images, labels = file.mapped("images"), file.tensor("labels")
    record = store.record(
        "image_fingerprint",
        key,
        lambda: {"sha256": made[0].fingerprint if made else _fingerprint(file)},
    )
    return task.checked(Images(images, labels, record["sha256"]), split)


def _in_memory(task: Task, split: Split, resize: Resize, size: int) -> Images:
    if not isinstance(task.source, Streamed):
        return _resized(task.split(split), resize, size)
    labels: list[int] = []
    images = torch.empty(len(_labels(task, split)), 3, size, size, dtype=torch.uint8)
    for image in _streamed(task, split, resize, size, labels):
        images[len(labels) - 1] = image
    return task.checked(Images(images[: len(labels)], torch.tensor(labels, dtype=torch.int64)), split)


def _write(path: Path, task: Task, split: Split, resize: Resize, size: int) -> None:
    """Decode, resize and write a split, a batch in memory at a time."""
    labels: list[int] = []
    images = _streamed(task, split, resize, size, labels)

    def batches() -> Iterator[Tensor]:
        while batch := list(islice(images, _BATCH)):
            yield torch.stack(batch)

    write_rows(
        path,
        "images",
        batches(),
        lambda: {"labels": torch.tensor(labels, dtype=torch.int64)},
        {"task": task.name, "split": split},
    )


def _streamed(task: Task, split: Split, resize: Resize, size: int, labels: list[int]) -> Iterator[Tensor]:
    """Yield a split's images, resized, and append the label of each."""
    source = cast("Streamed", task.source)
    stream = source.stream(split, lambda pixels: _one_resized(pixels, resize, size))
    total = len(_labels(task, split))
    for image, label in track(stream, f"{task.name}, {split} images", total):
        labels.append(label)
        yield image


def _labels(task: Task, split: Split) -> np.ndarray:
    """Return the labels of a split, at least one, before anything is decoded."""
    labels = cast("Streamed", task.source).labels(split)
    if len(labels) == 0:
        raise task.empty(split)
    return labels


def _one_resized(pixels: Tensor, resize: Resize, size: int) -> Tensor:
    return pixels if pixels.shape[-2:] == (size, size) else resize(pixels[None])[0]


def _fingerprint(file: TensorFile) -> str:
    """Return `Images.fingerprint` of a file, which need not fit in memory."""
    entry = file.entries["images"]
    found = hashlib.sha256(str(tuple(entry.shape)).encode())
    for start in range(0, entry.size, _READ):
        found.update(file.read("images", start, min(start + _READ, entry.size)).numpy().data)
    found.update(file.tensor("labels").numpy().data)
    return found.hexdigest()


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
