"""Draw patterns that fill the image: stripes by direction, stripes by width, and textures."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import Frame, pixel_centres, place, uniform
from mergeability.data.rendered.subjects.subject import Ink, Labels, by_class

ORIENTATIONS = (
    "horizontal",
    "gently rising",
    "steeply rising",
    "vertical",
    "steeply falling",
    "gently falling",
)
WIDTHS = {"very wide": 1.3, "wide": 2.0, "medium": 3.0, "narrow": 4.5, "very narrow": 6.75}
# What captions say where people are less precise than the labels.
SPOKEN_ORIENTATIONS = ("horizontal", "rising", "rising", "vertical", "falling", "falling")
SPOKEN_WIDTHS = ("wide", "wide", "medium", "narrow", "narrow")


def _grating(angle: Tensor, cycles: Tensor, generator: Generator) -> Ink:
    """Draw stripes running along `angle` with `cycles` per canvas, between a sine and a square wave."""
    count = len(angle)
    x, y = pixel_centres()
    across = y * torch.cos(angle)[:, None, None] - x * torch.sin(angle)[:, None, None]
    phase = uniform(generator, 0, 2 * math.pi, count, 1, 1)
    wave = torch.sin(math.pi * cycles[:, None, None] * across + phase)
    sharpness = uniform(generator, 1, 4, count, 1, 1)
    strength = uniform(generator, 0.35, 1, count, 1, 1)
    return strength * (0.5 + 0.5 * wave * sharpness).clamp(0, 1)


def draw_orientation(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw stripes of any width in one of six directions, thirty degrees apart."""
    count = len(labels)
    angle = labels * (math.pi / 6) + uniform(generator, -0.14, 0.14, count)
    return _grating(angle, uniform(generator, 1.5, 6, count), generator)


def draw_frequency(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw stripes of one of five widths, in any direction."""
    count = len(labels)
    cycles = torch.tensor(list(WIDTHS.values()))[labels] * torch.exp(uniform(generator, -0.15, 0.15, count))
    return _grating(uniform(generator, 0, math.pi, count), cycles, generator)


def _wave_of(position: Tensor) -> Tensor:
    return torch.sin(math.pi * position)


def _stripes(frame: Frame) -> Ink:
    return (0.5 + 2 * _wave_of(frame.u)).clamp(0, 1)


def _checks(frame: Frame) -> Ink:
    return (0.5 + 4 * _wave_of(frame.u) * _wave_of(frame.v)).clamp(0, 1)


def _spots(frame: Frame) -> Ink:
    u, v = torch.remainder(frame.u, 2) - 1, torch.remainder(frame.v, 2) - 1
    return frame.cover(torch.hypot(u, v) - 0.55)


def _rings(frame: Frame) -> Ink:
    return (0.5 + 2 * _wave_of(frame.radius())).clamp(0, 1)


def _waves(frame: Frame) -> Ink:
    return (0.5 + 2 * _wave_of(frame.u + 0.6 * _wave_of(frame.v))).clamp(0, 1)


def _net(frame: Frame) -> Ink:
    u, v = (torch.remainder(frame.u, 2) - 1).abs(), (torch.remainder(frame.v, 2) - 1).abs()
    return frame.cover(torch.minimum(u, v) - 0.25)


def _bricks(frame: Frame) -> Ink:
    course = torch.floor(frame.v / 1.4)
    v = torch.remainder(frame.v, 1.4) - 0.7
    u = torch.remainder(frame.u + 1.4 * torch.remainder(course, 2), 2.8) - 1.4
    return frame.cover(torch.maximum(u.abs() - 1.2, v.abs() - 0.48))


def _triangles(frame: Frame) -> Ink:
    height = torch.remainder(frame.v, 2) / 2
    return frame.cover((torch.remainder(frame.u, 2) - 1).abs() - (1 - height))


TEXTURES: dict[str, Callable[[Frame], Ink]] = {
    "stripes": _stripes,
    "checks": _checks,
    "spots": _spots,
    "rings": _rings,
    "waves": _waves,
    "net": _net,
    "bricks": _bricks,
    "triangles": _triangles,
}


def draw_textures(labels: Labels, generator: Generator, split: str) -> Ink:
    """Fill the image with one of eight patterns of any scale, phase and rotation."""
    count = len(labels)
    frame = place(count, generator, scale=(0.2, 0.36), turn=math.pi)
    return by_class(labels, frame, list(TEXTURES.values())) * uniform(generator, 0.5, 1, count, 1, 1)
