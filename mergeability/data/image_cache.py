"""The image cache: all code reads a task's images through this module.

`prepared` resizes images to a model's size once, stores them, and maps them into memory afterwards.
`originals` shows each image as it is stored, to check a dataset.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mergeability.data.inputs import Images, Source, Split, Streamed, Texts, check_split
from mergeability.data.real.decoding import Decoded
from mergeability.data.real.source import ImageSource
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.progress import track
from mergeability.provenance import version
from mergeability.store import Store
from mergeability.weights.safetensors_file import TensorFile, write_rows

Resize = Callable[[Tensor], Tensor]
T = TypeVar("T")

# Part of the store key: increment it when the meaning of stored values changes.
_VERSION = 1
# Number of images resized at a time.
_BATCH = 256
# Number of bytes hashed at a time.
_READ = 64 * 2**20


def prepared(task: Task, split: Split, resize: Resize, image_size: int, store: Store) -> Images:
    """Return the images of a split as uint8, resized to the square that the model expects.

    On first use, images are rendered or decoded, resized and stored. Later, the file is memory-mapped, so that only
    accessed images are read. Real images of any size and number are decoded in threads and written in batches. A
    source without an `identity` must provide its images each time; its resized images are identified by content.

    Args:
        task: the task.
        split: the split.
        resize: uint8 images of any size → uint8 images of the model's size.
        image_size: side length of the result, in pixels.
        store: the store; nothing is stored by a store in memory.

    Raises:
        UserError: the split is empty or unknown, or a label has no class name.
    """
    check_split(split)
    if store.root is None:
        found = _in_memory(task, split, resize, image_size)
        _say(task, split, len(found), None, {})
        return found
    describe = getattr(task.source, "identity", None)
    if describe is None:
        loaded = _loaded(task, split)
        content: dict[str, Any] = {"content": loaded.fingerprint}
    else:
        loaded, content = None, describe(split)
    key = {"images": content, "size": image_size, "resized_by": _resizing(), "version": _VERSION}
    made: list[Images] = []

    def tensors() -> dict[str, Tensor]:
        made.append(_resized(_loaded(task, split) if loaded is None else loaded, resize, image_size))
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
    _say(task, split, len(labels), store, key)
    return task.checked(Images(images, labels, record["sha256"]), split)


def _say(task: Task, split: Split, count: int, store: Store | None, key: Mapping[str, Any]) -> None:
    """Log images left out of a split and changes by decoding, even if the split was decoded earlier."""
    source = task.source
    if not isinstance(source, ImageSource):
        return

    def remarks() -> dict[str, Any]:
        if split in source.pixel_remarks:
            return {"remarks": source.pixel_remarks[split]}
        # The split was decoded before remarks were stored, or by another process.
        absent = len(source.labels(split)) - count
        return {
            "remarks": [f"{absent} images of the {split} split cannot be decoded and are left out."]
            if absent
            else []
        }

    kept = remarks() if store is None else store.record("image_remarks", key, remarks)
    source.say(split, kept["remarks"])


def remarks(task: Task) -> list[str]:
    """Return remarks on skipped or modified images of a task, for the splits prepared so far."""
    return list(task.source.remarks) if isinstance(task.source, ImageSource) else []


@dataclass(frozen=True)
class Originals:
    """The images of a split as stored, in their original sizes.

    Attributes:
        labels: labels of all images, including images that cannot be decoded.
        each: applies `work` to all or selected images in order, and yields the results.
    """

    labels: Int64[np.ndarray, "N"]
    each: "_Each"


class _Each(Protocol):
    def __call__(
        self, work: Callable[[Tensor], T], chosen: Sequence[int] | None = None
    ) -> Iterator[Decoded[T]]: ...


def originals(task: Task, split: Split) -> Originals:
    """Open a split whose images are decoded one by one and are not resized.

    Raises:
        UserError: the split is empty or unknown, or a label has no class name.
    """
    check_split(split)
    source = task.source
    if isinstance(source, ImageSource):
        labels = source.labels(split)
        task.check_labels(labels, split)
        return Originals(labels, lambda work, chosen=None: source.decoded(split, work, chosen))
    if isinstance(source, Streamed):
        labels = source.labels(split)
        task.check_labels(labels, split)
        return Originals(
            labels, lambda work, chosen=None: _numbered(source.stream(split, work), split, chosen)
        )
    images = _loaded(task, split)

    def each(work: Callable[[Tensor], T], chosen: Sequence[int] | None = None) -> Iterator[Decoded[T]]:
        for row in range(len(images)) if chosen is None else chosen:
            yield Decoded(_called(split, row), int(images.labels[row]), work(images.images[row]))

    return Originals(images.labels.numpy(), each)


def _numbered(
    stream: Iterator[tuple[T, int]], split: Split, chosen: Sequence[int] | None
) -> Iterator[Decoded[T]]:
    wanted = None if chosen is None else set(chosen)
    for row, (value, label) in enumerate(stream):
        if wanted is None or row in wanted:
            yield Decoded(_called(split, row), label, value)


def _called(split: Split, row: int) -> str:
    return f"{split} image {row}"


def _loaded(task: Task, split: Split) -> Images:
    """Read a source that provides all images at once, in one size."""
    loaded = cast("Source", task.source).load(split)
    if isinstance(loaded, Texts):
        raise UserError(
            f"Task {task.name!r} consists of texts, but images are expected. Choose a text model: model=minilm."
        )
    return task.checked(loaded, split)


def _in_memory(task: Task, split: Split, resize: Resize, size: int) -> Images:
    if not isinstance(task.source, Streamed):
        return _resized(_loaded(task, split), resize, size)
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
    # Filled in place, because concatenating parts would need twice the memory.
    resized = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for part, batch in zip(resized.split(_BATCH), images.images.split(_BATCH), strict=True):
        part.copy_(resize(batch))
    return Images(resized, images.labels)


def _resizing() -> dict[str, str]:
    """Return the versions of the resizing libraries, because other versions may round pixels differently."""
    return {library: version(library) for library in ("torch", "torchvision")}
