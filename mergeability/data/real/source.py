"""Create tasks of real images from the Hugging Face Hub, local copies of its datasets, or folders of image files."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mergeability.checks import clean_name
from mergeability.data.inputs import SPLITS, Split, check_split
from mergeability.data.real.class_names import ClassNames
from mergeability.data.real.decoding import Decoded, Encoded, decoded
from mergeability.data.real.held_out import held_out_by_class
from mergeability.data.real.image_files import some
from mergeability.data.real.layouts import Layout
from mergeability.data.real.tables import Tables, open_disk, open_hub
from mergeability.data.real.trees import FileTables, Rows, open_folder
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.provenance import version
from mergeability.random import seeded_generator

logger = logging.getLogger(__name__)

T = TypeVar("T")
Kind = Literal["hub", "disk", "folder"]

# Part of the identity of images: increment it when the same files are decoded to different pixels.
_VERSION = 1


@dataclass(frozen=True)
class ImageSource:
    """Read real images from the Hugging Face Hub, a saved copy or a folder; the source is opened on first use.

    Attributes:
        kind: "hub", "disk" (written by `save_to_disk`, or Parquet files) or "folder" (`train/<class>/…`).
        path: folder of the copy, or a folder with one folder per task; None for the Hub.
        layout: columns, splits and spellings of the dataset.
        classes: the task's classes and their spellings.

    Raises:
        UserError: the kind is unknown, a copy has no path, or the Hub no dataset id.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.data import ImageSource, Layout
        >>> from mergeability.data.real.class_names import ClassNames
        >>> from mergeability.examples import write_tiny_images
        >>> with TemporaryDirectory() as folder:
        ...     write_tiny_images(folder)
        ...     source = ImageSource("folder", folder, Layout(), ClassNames("greys", ["dark", "light"]))
        ...     source.labels("test")
        array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    """

    kind: Kind
    path: str | None
    layout: Layout
    classes: ClassNames

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(
                f"Task {self.classes.task!r}: expected task.source to be {', '.join(get_args(Kind))}, got "
                f"{self.kind!r}."
            )
        if self.kind == "hub" and not self.layout.id:
            raise UserError(
                f"Task {self.classes.task!r}: task.source=hub requires task.dataset.id=<id of the dataset on"
                " the Hugging Face Hub>. To read a local copy of the dataset instead, set"
                " task.path=<folder of the copy> and either task.source=disk or task.source=folder."
            )
        if self.kind != "hub" and self.path is None:
            raise UserError(
                f"Task {self.classes.task!r}: task.source={self.kind} requires task.path=<the folder of the"
                " copy>."
            )

    @cached_property
    def tables(self) -> Tables:
        """The opened dataset.

        Raises:
            UserError: the dataset does not exist or cannot be read.
        """
        if self.kind == "hub":
            return open_hub(self.layout, self.classes)
        path = Path(str(self.path))
        if self.kind == "disk":
            return open_disk(path, self.layout, self.classes)
        return open_folder(path, self.classes)

    def identity(self, split: Split) -> dict[str, Any]:
        """Return all inputs that determine the images of one split: the files, the selected rows and the decoding."""
        parts = self._parts(split)
        return {
            "files": [rows.stamp for rows, _ in parts],
            "rows": [_spelled_out(chosen, len(rows.labels)) for rows, chosen in parts],
            "labels": [_digest(rows.labels[chosen]) for rows, chosen in parts],
            "transpose": self.layout.transpose,
            "max_corrupt": self.layout.max_corrupt,
            "pillow": version("pillow"),
            "version": _VERSION,
        }

    def labels(self, split: Split) -> Int64[np.ndarray, "N"]:
        """Return the class of each image of a split, including images that cannot be decoded."""
        return np.concatenate([rows.labels[chosen] for rows, chosen in self._parts(split)])

    def decoded(
        self, split: Split, work: Callable[[Tensor], T], chosen: Sequence[int] | None = None
    ) -> Iterator[Decoded[T]]:
        """Decode all or selected images of a split in order, and apply `work` to each.

        Images that cannot be decoded carry the reason.
        """
        yield from decoded(self._encoded(split, chosen), work, self.layout.transpose)

    def stream(self, split: Split, work: Callable[[Tensor], T]) -> Iterator[tuple[T, int]]:
        """Decode a split in order, apply `work` to each image, and yield the result and the label.

        Raises:
            UserError: more than the share `max_corrupt` cannot be decoded; the message names examples.
        """
        broken: list[str] = []
        changed: dict[str, list[str]] = {}
        allowed = self.layout.max_corrupt * len(self.labels(split))
        for image in self.decoded(split, work):
            if image.value is not None:
                if image.remark is not None:
                    changed.setdefault(image.remark, []).append(image.name)
                yield image.value, image.label
                continue
            broken.append(f"{image.name} ({image.error})")
            if len(broken) > allowed:
                raise UserError(
                    f"Task {self.classes.task!r}: more than {allowed:.3g} images of its {split} split cannot "
                    "be decoded: "
                    f"{'; '.join(broken[:3])}. Repair the dataset, or allow more such images with "
                    "dataset.max_corrupt=<share>."
                )
        self.pixel_remarks[split] = pixel_remarks(split, broken, changed)

    @cached_property
    def pixel_remarks(self) -> dict[Split, list[str]]:
        """The images that could not be decoded or were modified by decoding, for each split that was decoded."""
        return {}

    @cached_property
    def remarks(self) -> list[str]:
        """Return all messages about left-out or modified images of the requested splits."""
        return []

    def say(self, split: Split, about_pixels: Sequence[str] = ()) -> None:
        """Log a split's skipped images, missing classes and changes made by decoding, each message only once."""
        for remark in [*self.left_out(split), *self._lacking(split), *about_pixels]:
            self._say_once(f"{self.classes.task}, {split}: {remark}")

    def left_out(self, split: Split) -> list[str]:
        """Return messages with the number and the names of those files of a split that are not images."""
        if not isinstance(self.tables, FileTables):
            return []
        names = self._names(split)
        found = [remark for name in names for remark in self.tables.listing(name).remarks]
        if split == "train":
            found += self.tables.others({name for one in SPLITS for name in self._names(one)})
        return found

    def _lacking(self, split: Split) -> list[str]:
        names = self.classes.names
        absent = [names[label] for label in sorted({*range(len(names))} - {*self.labels(split).tolist()})]
        return [f"{len(absent)} of {len(names)} classes have no images ({some(absent)})."] if absent else []

    def _encoded(self, split: Split, chosen: Sequence[int] | None) -> Iterator[Encoded]:
        parts = self._parts(split)
        if chosen is None:
            for rows, positions in parts:
                yield from rows.read(positions.tolist())
            return
        places = [(rows, position) for rows, positions in parts for position in positions.tolist()]
        for index in chosen:
            rows, position = places[index]
            yield from rows.read([position])

    def _parts(self, split: Split) -> list[tuple[Rows, Int64[np.ndarray, "n"]]]:
        """Return the rows of the dataset splits that make up a split."""
        check_split(split)
        own = self._names("validation")
        if split == "test" or (split == "train" and own):
            return [(rows, np.arange(len(rows.labels))) for rows in self._rows(split)]
        drawn_from = self._rows("validation" if own else "train")
        sizes = [len(rows.labels) for rows in drawn_from]
        held_out = self._held_out(np.concatenate([rows.labels for rows in drawn_from]), bool(own))
        chosen = held_out if split == "validation" else ~held_out
        parts = np.split(chosen, np.cumsum(sizes)[:-1])
        return [(rows, np.flatnonzero(part)) for rows, part in zip(drawn_from, parts, strict=True)]

    def _held_out(self, labels: Int64[np.ndarray, "N"], own: bool) -> np.ndarray:
        """Mark the images held out of all: the same ones for every copy of the dataset."""
        generator = seeded_generator("held out for validation", self.layout.validation_seed)
        order = torch.randperm(len(labels), generator=generator).numpy()
        asked = self.layout.held_out(len(labels), own)
        return held_out_by_class(labels, order, asked, self.layout.validation_most, shared=not own)

    def _rows(self, split: Split) -> list[Rows]:
        return [self._opened_rows(name) for name in self._names(split)]

    def _opened_rows(self, name: str) -> Rows:
        # Read and check labels once, even if several splits are drawn from them.
        if name not in self._cache:
            self._cache[name] = self.tables.rows(name)
        return self._cache[name]

    @cached_property
    def _cache(self) -> dict[str, Rows]:
        return {}

    def _names(self, split: Split) -> list[str]:
        """Return the dataset splits that make up a split of the task.

        On the Hub all exist. A copy may lack the validation split, which is then drawn from `train`, and a user's
        tree may have a folder `test` for a split with another name on the Hub.
        """
        names = self.layout.splits(split)
        if self.kind == "hub":
            return names
        there = self.tables.columns
        if names and split in there and isinstance(self.tables, FileTables) and split not in names:
            return [split]
        found = [name for name in names if name in there]
        if len(found) < len(names) and (found or split == "validation"):
            absent = ", ".join(sorted({*names} - {*found}))
            self._say_once(
                f"{self.classes.task}: the copy lacks a split, so {split} images are not taken from {absent}."
            )
        return found if found or split == "validation" else names

    def _say_once(self, remark: str) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)
            logger.warning("%s", remark)


def pixel_remarks(split: Split, broken: Sequence[str], changed: Mapping[str, Sequence[str]]) -> list[str]:
    """Return messages about images that cannot be decoded or were modified by decoding.

    Args:
        split: split of the images.
        broken: names of the images that cannot be decoded, with reasons.
        changed: what decoding changed → names of the images.
    """
    found = []
    if broken:
        named = "; ".join(broken[:10])
        found.append(
            f"{len(broken)} images of the {split} split cannot be decoded and are left out: {named}."
        )
    found += [f"images with {what}: {len(names)} ({some(names)})." for what, names in changed.items()]
    return found


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _spelled_out(chosen: Int64[np.ndarray, "n"], count: int) -> Any:
    return "all" if len(chosen) == count else _digest(chosen)


def image_task(
    name: str,
    source: Kind,
    path: str | None,
    dataset: Layout,
    class_names: Sequence[str],
    templates: Sequence[str],
    epochs: int,
    expected_accuracy: float | None = None,
) -> Task:
    """Create a task from a dataset of images, which is read or downloaded on first use.

    Args:
        name: name of the task.
        source: "hub", "disk" or "folder".
        path: folder of the copy; None for the Hub.
        dataset: columns, splits and spellings of the dataset.
        class_names: class names for the prompts, in label order.
        templates: prompts with one `{}` for the class name.
        epochs: number of fine-tuning epochs, at least 1.
        expected_accuracy: test accuracy, in [0, 1], that a model fine-tuned without a penalty should reach; None if
            unknown.

    Returns:
        The task.

    Raises:
        UserError: the source is unknown, a copy has no path, the Hub no dataset id, or a setting of the task is
            invalid.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.data import Layout, image_task
        >>> from mergeability.examples import write_tiny_images
        >>> with TemporaryDirectory() as folder:
        ...     write_tiny_images(folder)
        ...     classes, prompts = ["dark", "light"], ["a {} photo"]
        ...     task = image_task("greys", "folder", folder, Layout(validation_share=0.5), classes, prompts, epochs=1)
        ...     len(task.source.labels("train")), len(task.source.labels("validation"))
        (6, 6)
    """
    classes = ClassNames(clean_name(name, "the name of a task"), class_names, dataset.spellings)
    images = ImageSource(source, path, dataset, classes)
    return Task(name, images, classes.names, templates, epochs, expected_accuracy)
