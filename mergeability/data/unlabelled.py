"""Draw a seeded random sample of unlabelled images from a folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from mergeability.data.real.decoding import Encoded, decoded
from mergeability.data.real.image_files import existing_folder, list_images, shown, some
from mergeability.errors import UserError
from mergeability.random import seeded_generator


@dataclass(frozen=True)
class Drawn:
    """Hold images that were drawn from a folder.

    Attributes:
        images: uint8 (n, 3, size, size), in drawing order, so that a smaller sample is the beginning of a larger one.
        found: number of image files in the folder.
        unreadable: names of drawn files that cannot be read; others were drawn instead.
        faults: the same names, each with the reason.
        left_out: sentences about files that do not count as images.
        changed: what decoding changed → names of the images.
    """

    images: UInt8[Tensor, "n 3 size size"]
    found: int
    unreadable: tuple[str, ...]
    faults: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)


def draw_images(
    folder: str | Path, count: int, name: str, seed: int, resize: Callable[[Tensor], Tensor]
) -> Drawn:
    """Draw images without replacement from a folder and its subfolders.

    The draw depends on the name, the seed and the files' paths below the folder. Subfolder names, which may be
    classes, are not used. Only drawn files are decoded; one that cannot be is replaced by the next of the draw.

    Args:
        folder: folder of the images.
        count: number of images; all if there are fewer.
        name: name of the task.
        seed: seed of the draw.
        resize: images (1, 3, height, width) → images of the model's size.

    Raises:
        UserError: there is no such folder, no image file in it, or none that can be read.
    """
    place = existing_folder(folder)
    if place is None:
        raise UserError(
            f"No folder of images at {shown(str(folder))}. Give a folder with images of the task of '{name}'."
        )
    listing = list_images(place)
    files, left_out = listing.files, listing.remarks
    if listing.dangling:
        names = [shown(path.relative_to(place)) for path in listing.dangling]
        left_out.append(f"broken links to images are left out: {len(names)} ({some(names)}).")
    if not files:
        raise UserError(
            f"There are no images in {shown(place)} for '{name}'. Expected files such as a.jpg or b.png in"
            f" the folder or its subfolders.{' '.join(['', *left_out])}"
        )
    order = torch.randperm(len(files), generator=seeded_generator("unlabelled", name, seed)).tolist()
    chosen = (Encoded(shown(files[i].relative_to(place)), 0, files[i]) for i in order)
    kept, unreadable, faults, changed = [], [], [], {}
    for one in decoded(chosen, lambda pixels: resize(pixels[None])[0]):
        if one.value is None:
            unreadable.append(one.name)
            faults.append(f"{one.name} ({one.error})")
        else:
            kept.append(one.value)
            if one.remark is not None:
                changed.setdefault(one.remark, []).append(one.name)
        if len(kept) == count:
            break
    if not kept:
        raise UserError(
            f"None of the {len(files)} image files in {shown(place)} can be read; the first that was tried is"
            f" {faults[0]}. Check the files of '{name}'."
        )
    return Drawn(torch.stack(kept), len(files), tuple(unreadable), tuple(faults), tuple(left_out), changed)


def remarks(drawn: Drawn, asked: int, name: str) -> list[str]:
    """Return messages about missing images, and about files that were left out or modified."""
    found = []
    if len(drawn.images) < asked:
        found.append(
            f"'{name}' has only {len(drawn.images)} unlabelled images instead of {asked}; all of them are"
            " used."
        )
    if drawn.unreadable:
        found.append(
            f"{len(drawn.unreadable)} files of '{name}' could not be read and were left out: {some(drawn.faults)}."
        )
    found += [f"'{name}': {sentence}" for sentence in drawn.left_out]
    found += [
        f"'{name}': images with {what}: {len(names)} ({some(names)})."
        for what, names in drawn.changed.items()
    ]
    return found
