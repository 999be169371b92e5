"""Describe a rendered subject: its classes, their drawing functions and their captions."""

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
    """Hold the subject of a rendered task: its classes, their drawing functions and their captions.

    Attributes:
        classes: names of the classes, in label order.
        draw: function (labels, generator, stream) → ink in [0, 1], shape (N, 32, 32), or (N, colours, 32, 32).
        caption: phrase with one `{}` for the class name.
        kind: phrase that names the subject but not the class, for vague captions.
        spoken: class names used in captions if these are less precise than `classes`; None if they are the same.
        colour_is_class: whether the label determines the colour.

    Examples:
        >>> import torch
        >>> from mergeability.data.rendered import Subject
        >>> def draw(labels, generator, stream):
        ...     return labels[:, None, None].float().expand(-1, 32, 32)
        >>> subject = Subject(("empty", "full"), draw, caption="a {} square", kind="a square")
        >>> subject.draw(torch.tensor([0, 1, 1]), torch.Generator(), "train").mean((1, 2))
        tensor([0., 1., 1.])
    """

    classes: tuple[str, ...]
    draw: Callable[[Labels, Generator, str], Ink]
    caption: str
    kind: str
    spoken: tuple[str, ...] | None = None
    colour_is_class: bool = False


def by_class(labels: Labels, frame: Frame, drawings: list[Callable[[Frame], Ink]]) -> Ink:
    """Draw each image with the drawing function of its label, in the coordinates of the image."""
    ink = torch.zeros_like(frame.u)
    for label, drawing in enumerate(drawings):
        chosen = labels == label
        ink[chosen] = drawing(frame.rows(chosen))
    return ink
