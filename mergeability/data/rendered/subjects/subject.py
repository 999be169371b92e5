"""What a rendered subject is: its classes, how they are drawn, and what captions call them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import Frame

Labels = Int64[Tensor, "N"]
# One layer, or one for each colour: the second is painted a quarter of the colour wheel from the first, and so on.
Ink = Float[Tensor, "N 32 32"] | Float[Tensor, "N colours 32 32"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Subject:
    """What a rendered task is about.

    classes: names in label order. caption: how a class is written in a sentence, with one `{}`. kind: the
    subject without its class, for a caption that says no more. spoken: what captions call the classes, where
    that is less precise than `classes`. colour_is_class: the label chooses the hue.
    """

    classes: tuple[str, ...]
    draw: Callable[[Labels, Generator, str], Ink]
    caption: str
    kind: str
    spoken: tuple[str, ...] | None = None
    colour_is_class: bool = False


def by_class(labels: Labels, frame: Frame, drawings: list[Callable[[Frame], Ink]]) -> Ink:
    """Draw each image by the drawing function of its label, in the frame of that image."""
    ink = torch.zeros_like(frame.u)
    for label, drawing in enumerate(drawings):
        chosen = labels == label
        ink[chosen] = drawing(frame.rows(chosen))
    return ink
