"""Images drawn from a seed: a source that needs no file and no network."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from mergeability.checks import Count, Seed
from mergeability.data.inputs import Images, Split, check_split
from mergeability.data.rendered.canvas import HUES, paint
from mergeability.data.rendered.subjects import SUBJECTS, Subject
from mergeability.errors import UserError
from mergeability.random import seeded_generator

logger = logging.getLogger(__name__)

# Pretraining draws from a stream, and from handwritten originals, that no task's split ever sees.
Stream = Split | Literal["pretraining"]

# Raise it when any subject is drawn in another way: a test pins the images of each.
_VERSION = 1
_LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class Rendered:
    """Images of one subject, drawn on the fly.

    The same numbers always give the same images. Splits draw from separate streams of random numbers, and
    handwritten digits from disjoint originals. A larger split is another draw, not an extension.

    subject: one of `subjects.SUBJECTS`. train, validation, test: images in each split. seed: another seed,
    other images.

    Raises:
        UserError: an unknown subject, or a negative count.
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
        """Draw the images of one split.

        Raises:
            UserError: an unknown split.
        """
        check_split(split)
        images, _ = render(self.subject, getattr(self, split), split, self.seed)
        return images

    def identity(self, split: Split) -> dict[str, Any]:
        """Return what determines the images of one split: the options, a version of the drawing code, its libraries."""
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
    """Return a subject by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SUBJECTS:
        raise UserError(f"Expected a rendered subject among {', '.join(SUBJECTS)}, got {name!r}.")
    return SUBJECTS[name]


def render(
    subject: str, count: int, stream: Stream, seed: int, clutter: float = 1.0
) -> tuple[Images, Int64[Tensor, "N"]]:
    """Draw balanced classes in random order, and return the images and each one's position in `canvas.HUES`.

    clutter: in [0, 1], how much contrast, background, stray lines and noise disturb (see `canvas.paint`).

    Raises:
        UserError: an unknown subject.
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
