"""Define the source of rendered images."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from mergeability.checks import Count, Seed
from mergeability.data.inputs import Images, Split, check_split
from mergeability.data.rendered.canvas import HUES, paint
from mergeability.data.rendered.subjects import SUBJECTS, Subject
from mergeability.errors import UserError
from mergeability.provenance import version
from mergeability.random import seeded_generator

logger = logging.getLogger(__name__)

# Pretraining draws from a stream, and from handwritten originals, that no task's split ever sees.
Stream = Split | Literal["pretraining"]

# Increment it when the drawing of any subject changes; a test pins the images of each.
_VERSION = 1
_LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Rendered:
    """Render images of one subject on request, without files or a network.

    Equal arguments always give equal images. Splits use separate streams of random numbers, and handwritten digits
    disjoint originals. A larger split is a new draw, not an extension of the smaller one.

    Attributes:
        subject: a name in `SUBJECTS`.
        train: number of training images, at least 0.
        validation: number of validation images, at least 0.
        test: number of test images, at least 0.
        seed: seed of the images.

    Raises:
        UserError: the subject is unknown, or a count is negative.

    Examples:
        >>> from mergeability.data import Rendered
        >>> images = Rendered("loops", train=8, validation=4, test=4).load("train")
        >>> images.images.shape, images.images.dtype, images.labels.unique()
        (torch.Size([8, 3, 32, 32]), torch.uint8, tensor([0, 1, 2, 3]))
    """

    subject: str
    train: Count
    validation: Count
    test: Count
    seed: Seed = 0

    def __post_init__(self) -> None:
        find_subject(self.subject)
        for split in ("train", "validation", "test"):
            count = getattr(self, split)
            if count < 0:
                raise UserError(f"Rendered {self.subject!r}: expected {split} >= 0 images, got {count}.")

    def load(self, split: Split) -> Images:
        """Render the images of one split.

        Raises:
            UserError: an unknown split.
        """
        check_split(split)
        images, _ = render(self.subject, getattr(self, split), split, self.seed)
        return images

    def identity(self, split: Split) -> dict[str, Any]:
        """Return all inputs that determine the images of one split: options, and versions of code and libraries."""
        check_split(split)
        return {
            "rendered": self.subject,
            "count": getattr(self, split),
            "split": split,
            "seed": self.seed,
            "version": _VERSION,
            "libraries": {library: version(library) for library in _LIBRARIES},
        }


def find_subject(name: str) -> Subject:
    """Return the rendered subject with the given name.

    Args:
        name: a name in `SUBJECTS`.

    Raises:
        UserError: the name is unknown.

    Examples:
        >>> from mergeability.data.rendered import find_subject
        >>> find_subject("loops").classes
        ('apart', 'linked', 'nested', 'concentric')
    """
    if name not in SUBJECTS:
        raise UserError(f"Expected a rendered subject among {', '.join(SUBJECTS)}, got {name!r}.")
    return SUBJECTS[name]


def render(
    subject: str, count: int, stream: Stream, seed: int, clutter: float = 1.0
) -> tuple[Images, Int64[Tensor, "N"]]:
    """Render images of a subject in random order, with equally many images of each class.

    Args:
        subject: a name in `SUBJECTS`.
        count: number of images, N.
        stream: split, or "pretraining": each has its own random numbers.
        seed: seed of the images.
        clutter: strength of the background, stray lines and noise, in [0, 1] (see `canvas.paint`).

    Returns:
        Images of 32×32 pixels with their labels, and the index of each image's colour in `canvas.HUES`, shape (N,).

    Raises:
        UserError: the subject is unknown.

    Examples:
        >>> from mergeability.data.rendered import render
        >>> images, hues = render("loops", 4, "train", seed=0)
        >>> images.images.shape, sorted(images.labels.tolist()), hues.shape
        (torch.Size([4, 3, 32, 32]), [0, 1, 2, 3], torch.Size([4]))
    """
    drawn = find_subject(subject)
    generator = seeded_generator("rendered", subject, stream, seed)
    labels = torch.arange(count) % len(drawn.classes)
    labels = labels[torch.randperm(count, generator=generator)]
    hues = torch.randint(0, len(HUES), (count,), generator=generator)
    if drawn.colour_is_class:
        hues = labels
    ink = drawn.draw(labels, generator, stream)
    logger.debug("Drew %d %s images of %s, seed %d", count, stream, subject, seed)
    return Images(paint(ink, generator, clutter, hues), labels), hues
