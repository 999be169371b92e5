"""Read splits of a dataset from image files in the folders <split>/<class>."""

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from mergeability.data.real.class_names import ClassNames
from mergeability.data.real.decoding import Encoded
from mergeability.data.real.image_files import (
    HIDDEN,
    TWICE,
    Listing,
    by_folder,
    existing_folder,
    is_hidden,
    list_images,
    shown,
    some,
    top_folders,
)
from mergeability.errors import UserError


class Rows(Protocol):
    """Define the interface of a stored split."""

    @property
    def labels(self) -> Int64[np.ndarray, "N"]:
        """The class of each row."""
        ...

    @property
    def stamp(self) -> str:
        """A record that identifies the files; if a file changes, the record changes."""
        ...

    def read(self, chosen: Sequence[int]) -> Iterator[Encoded]:
        """Yield the encoded images of the given rows, in the given order."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Hold a split that is stored as image files in class folders."""

    labels: Int64[np.ndarray, "N"]
    stamp: str
    files: Sequence[Path]

    def read(self, chosen: Sequence[int]) -> Iterator[Encoded]:
        """Yield the image files of the given rows; a file is read only when it is decoded."""
        for position in chosen:
            file = self.files[int(position)]
            yield Encoded(shown(file), int(self.labels[int(position)]), file)


@dataclass(frozen=True)
class FileTables:
    """Hold a dataset that is stored as image files in the folders <split>/<class>.

    The order of the classes is that of the task: a folder is a class by its name, or by its number.

    Attributes:
        root: the folder.
        classes: the task's.
    """

    root: Path
    classes: ClassNames

    @property
    def columns(self) -> dict[str, list[str]]:
        """Return the class folders of each split."""
        return {
            path.name: sorted(by_folder(self.listing(path.name).files, path))
            for path in top_folders(self.root)
        }

    def listing(self, split: str) -> Listing:
        """Return the cached list of the image files of a split."""
        if split not in self._listings:
            self._listings[split] = list_images(self.root / split)
        return self._listings[split]

    @cached_property
    def _listings(self) -> dict[str, Listing]:
        return {}

    def rows(self, split: str) -> FileRows:
        """Return one split, with its files sorted by class and name.

        A link that leads nowhere is an image that does not decode.

        Raises:
            UserError: the folder does not exist, or contains an unknown class folder.
        """
        folder = self.root / split
        splits = top_folders(self.root)
        if folder not in splits:
            there = [shown(path.name) for path in splits]
            raise UserError(
                f"Task {self.classes.task!r}: expected a folder {folder} with one folder of images per class"
                + (f", and found {some(there)}" if there else "")
                + ". Set task.path to the folder that contains train and test."
            )
        listing = self.listing(split)
        by_class = by_folder([*listing.files, *listing.dangling], folder)
        if "." in by_class:
            outside = [shown(path.name) for path in by_class["."]]
            raise UserError(
                f"Task {self.classes.task!r}: expected one folder of images per class in {folder}, but"
                f" {len(outside)} images are not in a class folder ({some(outside)}). Move each image into"
                " the folder of its class."
            )
        labels = self.classes.labels(by_class, str(folder))
        pairs = sorted((labels[name], file) for name, files in by_class.items() for file in files)
        files = [file for _, file in pairs]
        return FileRows(np.array([label for label, _ in pairs], dtype=np.int64), file_stamp(files), files)

    def others(self, used: Collection[str]) -> list[str]:
        """List the folders that belong to no split of the task, and the files outside of folders."""
        reasons: dict[str, list[str]] = {}
        splits = top_folders(self.root)
        for path in sorted(self.root.iterdir()):
            if is_hidden(path.name):
                reasons.setdefault(HIDDEN, []).append(shown(path.name))
            elif existing_folder(path) is None:
                reasons.setdefault("files outside the folders of the splits", []).append(shown(path.name))
            elif path not in splits:
                reasons.setdefault(TWICE, []).append(shown(path.name))
            elif path.name not in used:
                reasons.setdefault("folders that are no split of this task", []).append(shown(path.name))
        return [f"{reason} are left out: {len(names)} ({some(names)})." for reason, names in reasons.items()]


def file_stamp(files: Sequence[Path]) -> str:
    """Return a hash of the names, sizes and modification times of files; reading their contents would take minutes."""
    found = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError:
            # For a broken link, use the size and time of the link itself.
            status = file.lstat()
        found.update(os.fsencode(file.name))
        found.update(f"\x1f{status.st_size}\x1f{status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def open_folder(path: Path, classes: ClassNames) -> FileTables:
    """Open a dataset of image files in the folders `train/<class>` and `test/<class>`.

    Raises:
        UserError: there is no such folder.
    """
    return FileTables(copy_folder(path, classes.task), classes)


def copy_folder(path: Path, task: str) -> Path:
    """Return the folder of a task's copy: the given folder, or its subfolder with the name of the task.

    Raises:
        UserError: there is no such folder.
    """
    place = existing_folder(path)
    if place is None:
        raise UserError(
            f"Task {task!r}: there is no folder {shown(path)}. Set task.path to a copy of the dataset."
        )
    return existing_folder(place / task) or place
