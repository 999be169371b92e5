"""Unlabelled images of a folder: a few of them, drawn by seed; nothing but pixels is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from mergeability.data.real.decoding import Encoded, decoded
from mergeability.errors import UserError
from mergeability.random import seeded_generator

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NAMED = 3


@dataclass(frozen=True)
class Drawn:
    """Images drawn from a folder.

    Attributes:
        images: uint8 (n, 3, size, size), in the order of the draw, so that fewer are the first of them.
        found: number of image files in the folder.
        unreadable: names of drawn files that are no images; others were drawn in their place.
    """

    images: UInt8[Tensor, "n 3 size size"]
    found: int
    unreadable: tuple[str, ...]


def draw_images(
    folder: str | Path, count: int, name: str, seed: int, resize: Callable[[Tensor], Tensor]
) -> Drawn:
    """Draw images from a folder and its subfolders, without replacement.

    The draw depends on the name, the seed and the files' paths below the folder. Names of subfolders, which may be
    classes, are not used. Only drawn files are decoded; one that cannot be is replaced by the next of the draw.

    Args:
        folder: where the images lie.
        count: how many; all where there are fewer.
        name: of the task.
        seed: of the draw.
        resize: images (1, 3, height, width) → those of the size that the model takes.

    Raises:
        UserError: there is no such folder, no image file in it, or none that can be read.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"No folder of images at {place}. Give a folder with images of the task of '{name}'.")
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    if not files:
        raise UserError(
            f"No images in {place} for '{name}': expected files that end in {', '.join(ENDINGS)}, in the folder or its "
            "subfolders."
        )
    order = torch.randperm(len(files), generator=seeded_generator("unlabelled", name, seed)).tolist()
    chosen = (Encoded(str(files[i].relative_to(place)), 0, files[i]) for i in order)
    kept, unreadable = [], []
    for one in decoded(chosen, lambda pixels: resize(pixels[None])[0]):
        if one.value is None:
            unreadable.append(one.name)
        else:
            kept.append(one.value)
        if len(kept) == count:
            break
    if not kept:
        raise UserError(
            f"None of the {len(files)} image files in {place} can be read, such as {unreadable[0]}. Check the files of "
            f"'{name}'."
        )
    return Drawn(torch.stack(kept), len(files), tuple(unreadable))


def remarks(drawn: Drawn, asked: int, name: str) -> list[str]:
    """Say where fewer images were drawn than asked for, and which files could not be read."""
    found = []
    if len(drawn.images) < asked:
        found.append(
            f"'{name}' has {len(drawn.images)} unlabelled images, fewer than the {asked} asked for: all are used."
        )
    if drawn.unreadable:
        names = ", ".join(drawn.unreadable[:_NAMED]) + (", …" if len(drawn.unreadable) > _NAMED else "")
        found.append(
            f"{len(drawn.unreadable)} files of '{name}' could not be read and were left out: {names}."
        )
    return found
