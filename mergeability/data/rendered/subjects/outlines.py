"""Draw single objects: those classified by shape, those classified by colour, and regular polygons."""

import math
from collections.abc import Callable

import torch
from torch import Generator

from mergeability.data.rendered.canvas import Frame, place, polygon_distance
from mergeability.data.rendered.subjects.subject import Ink, Labels, by_class

POLYGONS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}


def _circle(frame: Frame) -> Ink:
    return frame.cover(frame.radius() - 0.8)


def _square(frame: Frame) -> Ink:
    return frame.cover(torch.maximum(frame.u.abs(), frame.v.abs()) - 0.7)


def _triangle(frame: Frame) -> Ink:
    return frame.cover(polygon_distance(frame, torch.full_like(frame.scale, 3)))


def _star(frame: Frame) -> Ink:
    sector = 2 * math.pi / 5
    offset = torch.remainder(frame.angle() - math.pi / 2, sector)
    towards_point = (offset / (sector / 2) - 1).abs()
    return frame.cover(frame.radius() - (0.38 + 0.62 * towards_point**1.5))


def _cross(frame: Frame) -> Ink:
    longer = torch.maximum(frame.u.abs(), frame.v.abs())
    shorter = torch.minimum(frame.u.abs(), frame.v.abs())
    return frame.cover(torch.maximum(longer - 0.9, shorter - 0.28))


def _ring(frame: Frame) -> Ink:
    return frame.cover((frame.radius() - 0.66).abs() - 0.2)


def _moon(frame: Frame) -> Ink:
    bite = 0.72 - torch.hypot(frame.u - 0.42, frame.v)
    return frame.cover(torch.maximum(frame.radius() - 0.88, bite))


def _bar(frame: Frame) -> Ink:
    return frame.cover(torch.maximum(frame.u.abs() - 0.95, frame.v.abs() - 0.28))


SHAPES: dict[str, Callable[[Frame], Ink]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "bar": _bar,
}


def draw_shapes(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a filled shape of any size, position and rotation."""
    frame = place(len(labels), generator, scale=(0.5, 0.9), turn=0.5)
    return by_class(labels, frame, list(SHAPES.values()))


def draw_colours(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a random shape in the colour of the class."""
    outlines = torch.randint(0, len(SHAPES), (len(labels),), generator=generator)
    return draw_shapes(outlines, generator, split)


def draw_polygons(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a regular polygon, filled or hollow, of any size, position and rotation."""
    count = len(labels)
    sides = torch.tensor(list(POLYGONS.values()), dtype=torch.float32)[labels][:, None, None]
    frame = place(count, generator, scale=(0.7, 0.95), turn=math.pi)
    distance = polygon_distance(frame, sides)
    hollow = torch.rand(count, 1, 1, generator=generator) < 0.5
    return frame.cover(torch.where(hollow, (distance + 0.12).abs() - 0.12, distance))
