"""The twelve subjects a rendered task can have: what each class looks like, and what it is called.

Every drawing function takes the labels wanted, a generator for everything else, and the split (which only the
handwritten digits need), and returns ink. None of them knows colours or noise: `canvas.paint` adds those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import (
    HUES,
    SIZE,
    Frame,
    pixel_centres,
    place,
    polygon_distance,
    segment_distance,
    uniform,
)
from mergeability.data.rendered.glyphs import LETTERS, handwritten_digits, letter_fonts, sample_glyphs

Labels = Int64[Tensor, "N"]
Ink = Float[Tensor, "N 32 32"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
HOURS = (*NUMBERS[1:], "eleven", "twelve")
# What captions say where people are less precise than the labels.
SPOKEN_ORIENTATIONS = ("horizontal", "rising", "rising", "vertical", "falling", "falling")
SPOKEN_WIDTHS = ("wide", "wide", "medium", "narrow", "narrow")
ORIENTATIONS = (
    "horizontal",
    "gently rising",
    "steeply rising",
    "vertical",
    "steeply falling",
    "gently falling",
)
WIDTHS = {"very wide": 1.3, "wide": 2.0, "medium": 3.0, "narrow": 4.5, "very narrow": 6.75}
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
POLYGONS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}
RELATIONS = ("right of", "above", "left of", "below")


def draw_digits(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a real handwritten digit, stretched, slanted a little and placed."""
    originals, values = handwritten_digits(split)
    chosen = torch.empty_like(labels)
    for value in range(10):
        pool = torch.nonzero(values == value)[:, 0]
        wanted = labels == value
        picks = torch.randint(0, len(pool), (int(wanted.sum()),), generator=generator)
        chosen[wanted] = pool[picks]
    frame = place(len(labels), generator, scale=(0.75, 0.95), turn=0.15)
    return sample_glyphs(originals[chosen], frame)


def draw_letters(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a capital letter in one of several fonts, stretched, slanted and placed."""
    count = len(labels)
    fonts = letter_fonts()
    chosen = torch.randint(0, len(fonts), (count,), generator=generator)
    frame = place(count, generator, scale=(0.7, 0.9), turn=0.15)
    slant = uniform(generator, -0.2, 0.2, count, 1, 1)
    stretch = uniform(generator, 0.8, 1.25, count, 1, 1)
    slanted = Frame((frame.u - slant * frame.v) * stretch, frame.v, frame.scale)
    return sample_glyphs(fonts[chosen, labels], slanted)


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


def _by_class(labels: Labels, frame: Frame, drawings: list[Callable[[Frame], Ink]]) -> Ink:
    ink = torch.zeros_like(frame.u)
    for label, drawing in enumerate(drawings):
        chosen = labels == label
        ink[chosen] = drawing(frame.rows(chosen))
    return ink


def draw_shapes(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a filled shape of any size, place and turn."""
    frame = place(len(labels), generator, scale=(0.5, 0.9), turn=0.5)
    return _by_class(labels, frame, list(SHAPES.values()))


def draw_colours(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw any shape: the class is the colour it is painted with, not its outline."""
    outlines = torch.randint(0, len(SHAPES), (len(labels),), generator=generator)
    return draw_shapes(outlines, generator, split)


def draw_dots(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw one more dots than the label, apart from each other, of a size that varies between images."""
    count, cells = len(labels), 9
    order = torch.rand(count, cells, generator=generator).argsort(dim=1).argsort(dim=1)
    filled = order <= labels[:, None]
    column = torch.arange(cells) % 3 - 1
    row = torch.arange(cells) // 3 - 1
    centre_x = column * 0.62 + uniform(generator, -0.12, 0.12, count, cells)
    centre_y = row * 0.62 + uniform(generator, -0.12, 0.12, count, cells)
    radius = uniform(generator, 0.11, 0.24, count, 1)
    x, y = pixel_centres()
    distance = torch.hypot(x - centre_x[..., None, None], y - centre_y[..., None, None])
    ink = (0.5 - (distance - radius[..., None, None]) * (SIZE / 2)).clamp(0, 1)
    return (ink * filled[..., None, None]).amax(dim=1)


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
    """Draw stripes in one of six directions, thirty degrees apart, of any width."""
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
    """Fill the canvas with one of eight patterns, of any coarseness, phase and turn."""
    count = len(labels)
    frame = place(count, generator, scale=(0.2, 0.36), turn=math.pi)
    return _by_class(labels, frame, list(TEXTURES.values())) * uniform(generator, 0.5, 1, count, 1, 1)


def draw_arrows(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw an arrow pointing in one of eight directions, of any size and place."""
    count = len(labels)
    angle = labels * (math.pi / 4) + uniform(generator, -0.2, 0.2, count)
    frame = place(count, generator, scale=(0.6, 0.9)).turned(angle[:, None, None])
    head_width = uniform(generator, 0.4, 0.7, count, 1, 1)
    thickness = uniform(generator, 0.1, 0.2, count, 1, 1)
    shaft = torch.maximum((frame.u + 0.3).abs() - 0.6, frame.v.abs() - thickness)
    # The head tapers from its full width at u = 0.2 to a point at u = 0.9.
    slope = head_width / 0.7
    head = torch.maximum((frame.v.abs() - slope * (0.9 - frame.u)) / (1 + slope**2).sqrt(), 0.2 - frame.u)
    return frame.cover(torch.minimum(shaft, head))


def draw_clocks(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a clock face: a rim, a long thin minute hand anywhere and a short thick hour hand, the class."""
    count = len(labels)
    frame = place(count, generator, scale=(0.75, 0.97))
    hour = math.pi / 2 - (labels + 1) * (math.pi / 6) + uniform(generator, -0.12, 0.12, count)
    minute = uniform(generator, 0, 2 * math.pi, count)
    rim = (frame.radius() - 0.93).abs() - 0.05
    hour_hand = _hand(frame, hour, length=0.5, thickness=0.13)
    minute_hand = _hand(frame, minute, length=0.82, thickness=0.05)
    return frame.cover(torch.minimum(rim, torch.minimum(hour_hand, minute_hand)))


def _hand(frame: Frame, angle: Tensor, length: float, thickness: float) -> Tensor:
    origin = torch.zeros_like(frame.scale)
    tip = (length * torch.cos(angle)[:, None, None], length * torch.sin(angle)[:, None, None])
    return segment_distance(frame.u, frame.v, (origin, origin), tip) - thickness


def draw_polygons(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a regular polygon, filled or hollow, of any size, place and turn."""
    count = len(labels)
    sides = torch.tensor(list(POLYGONS.values()), dtype=torch.float32)[labels][:, None, None]
    frame = place(count, generator, scale=(0.7, 0.95), turn=math.pi)
    distance = polygon_distance(frame, sides)
    hollow = torch.rand(count, 1, 1, generator=generator) < 0.5
    return frame.cover(torch.where(hollow, (distance + 0.12).abs() - 0.12, distance))


def draw_positions(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a circle to one side of a square: the class is the side, whatever the place and sizes."""
    count = len(labels)
    frame = place(count, generator, scale=(0.7, 0.95))
    angle = labels * (math.pi / 2) + uniform(generator, -0.4, 0.4, count)
    reach = uniform(generator, 0.5, 0.62, count)
    shift_u = (reach * torch.cos(angle))[:, None, None]
    shift_v = (reach * torch.sin(angle))[:, None, None]
    size = uniform(generator, 0.26, 0.38, 2, count, 1, 1)
    circle = torch.hypot(frame.u - shift_u, frame.v - shift_v) - size[0]
    square = torch.maximum((frame.u + shift_u).abs(), (frame.v + shift_v).abs()) - size[1] * 0.9
    return frame.cover(torch.minimum(circle, square))


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


SUBJECTS = {
    "digits": Subject(NUMBERS[:10], draw_digits, "the digit {}", "a digit"),
    "letters": Subject(LETTERS, draw_letters, "the letter {}", "a letter"),
    "shapes": Subject(tuple(SHAPES), draw_shapes, "a {} shape", "a shape"),
    "colours": Subject(tuple(HUES), draw_colours, "a {} thing", "a coloured thing", colour_is_class=True),
    "dots": Subject(NUMBERS[1:7], draw_dots, "{} dots", "some dots"),
    "orientation": Subject(ORIENTATIONS, draw_orientation, "{} lines", "lines", SPOKEN_ORIENTATIONS),
    "frequency": Subject(tuple(WIDTHS), draw_frequency, "{} bands", "bands", SPOKEN_WIDTHS),
    "textures": Subject(tuple(TEXTURES), draw_textures, "a pattern of {}", "a pattern"),
    "arrows": Subject(DIRECTIONS, draw_arrows, "an arrow pointing {}", "an arrow"),
    "clocks": Subject(HOURS, draw_clocks, "a clock at {}", "a clock"),
    "polygons": Subject(tuple(POLYGONS), draw_polygons, "a polygon, a {}", "a polygon"),
    "positions": Subject(RELATIONS, draw_positions, "a circle {} a square", "a circle and a square"),
}
