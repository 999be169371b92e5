"""Draw relations between shapes: covering, enclosing, relative size, and numbers of holes and colours."""

import math
from itertools import permutations

import torch
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import SIZE, Frame, pixel_centres, place, polygon_distance, uniform
from mergeability.data.rendered.subjects.subject import Ink, Labels

HOLES = ("no holes", "one hole", "two holes", "three holes", "four holes")
COLOURS = ("one colour", "two colours", "three colours", "four colours")
RINGS = ("apart", "linked", "nested", "concentric")
# The radius of the left one over that of the right one.
SIZES = {
    "much smaller than": 0.4,
    "smaller than": 0.64,
    "as large as": 1.0,
    "larger than": 1.56,
    "much larger than": 2.5,
}
_COVERING = ("circle", "square", "triangle")
COVERS = tuple(f"{front} covering {back}" for front, back in permutations(_COVERING, 2))


def draw_buttons(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a button with holes.

    Classes: the number of holes, from none to four. Nuisance: which of four places the holes take, their size, a round
    or a square button, its turn, size and place.
    """
    count = len(labels)
    frame = place(count, generator, scale=(0.7, 0.95), turn=math.pi)
    square = torch.rand(count, 1, 1, generator=generator) < 0.5
    side = torch.maximum(frame.u.abs(), frame.v.abs()) - 0.72
    button = torch.where(square, side, frame.radius() - 0.9)
    order = torch.rand(count, 4, generator=generator).argsort(dim=1).argsort(dim=1)
    radius = uniform(generator, 0.16, 0.22, count, 1, 1)
    for corner in range(4):
        angle = math.pi / 4 + corner * math.pi / 2
        hole = torch.hypot(frame.u - 0.47 * math.cos(angle), frame.v - 0.47 * math.sin(angle)) - radius
        open_ = (order[:, corner] < labels)[:, None, None]
        button = torch.where(open_, torch.maximum(button, -hole), button)
    return frame.cover(button)


def draw_palette(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw six or seven spots in up to four colours whose hues are a quarter of the colour wheel apart.

    Classes: the number of colours, from one to four. Nuisance: which colours, the number of spots and their places,
    which spot has which colour, round or square spots, their size.
    """
    count, cells, layers = len(labels), 9, len(COLOURS)
    order = torch.rand(count, cells, generator=generator).argsort(dim=1).argsort(dim=1)
    filled = order < torch.randint(6, 8, (count, 1), generator=generator)
    # The first spots show every colour of the class once, the others any of them.
    any_ = (torch.rand(count, cells, generator=generator) * (labels[:, None] + 1)).long()
    colour = torch.where(order <= labels[:, None], order, any_)
    column, row = torch.arange(cells) % 3 - 1, torch.arange(cells) // 3 - 1
    centre_x = column * 0.63 + uniform(generator, -0.08, 0.08, count, cells)
    centre_y = row * 0.63 + uniform(generator, -0.08, 0.08, count, cells)
    radius = uniform(generator, 0.2, 0.27, count, 1, 1)
    square = torch.rand(count, 1, 1, generator=generator) < 0.5
    x, y = pixel_centres()
    ink = torch.zeros(count, layers, SIZE, SIZE)
    for cell in range(cells):
        u, v = x - centre_x[:, cell, None, None], y - centre_y[:, cell, None, None]
        distance = torch.where(
            square, torch.maximum(u.abs(), v.abs()) - 0.9 * radius, torch.hypot(u, v) - radius
        )
        spot = (0.5 - distance * (SIZE / 2)).clamp(0, 1) * filled[:, cell, None, None]
        for layer in range(layers):
            own = spot * (colour[:, cell] == layer)[:, None, None]
            ink[:, layer] = torch.maximum(ink[:, layer], own)
    return ink


def _ends(frame: Frame, angle: Tensor, apart: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the coordinates seen from two centres that lie `apart` from each other in direction `angle`."""
    u, v = torch.cos(angle) * apart / 2, torch.sin(angle) * apart / 2
    return (frame.u + u, frame.v + v), (frame.u - u, frame.v - v)


def draw_loops(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw two rings.

    Classes: apart, linked (their lines cross), nested (one inside the other, off its centre), concentric. Nuisance:
    both sizes, the direction from one to the other, the width of the line, the place.
    """
    count = len(labels)
    frame = place(count, generator, scale=(0.85, 0.98))
    first, second, position = uniform(generator, 0, 1, 3, count, 1, 1)
    # By class: the range of the first radius, of the second (for the last two, of the first), and of the distance
    # between the centres, in terms of both.
    one, two = 0.26 + 0.12 * first, 0.26 + 0.12 * second
    crossing_one, crossing_two = 0.38 + 0.14 * first, 0.38 + 0.14 * second
    outer = 0.74 + 0.16 * first
    inner = outer * (0.28 + 0.12 * second)
    radii = [(one, two), (crossing_one, crossing_two), (outer, inner), (outer, inner)]
    distances = [
        one + two + 0.24 + 0.1 * position,
        (crossing_one + crossing_two) * (0.48 + 0.22 * position),
        (outer - inner) * (0.4 + 0.12 * position),
        0.04 * position,
    ]
    chosen = labels[:, None, None]
    a, b, apart = torch.zeros(3, count, 1, 1)
    for label, ((large, small), distance) in enumerate(zip(radii, distances, strict=True)):
        here = chosen == label
        a, b = torch.where(here, large, a), torch.where(here, small, b)
        apart = torch.where(here, distance, apart)
    # The outer ring stays in the middle; of two rings side by side, the middle lies between them.
    middle = torch.where(chosen >= 2, 0.0, (a - b) / 2)
    angle = uniform(generator, -math.pi, math.pi, count, 1, 1)
    centred = Frame(frame.u - middle * torch.cos(angle), frame.v - middle * torch.sin(angle), frame.scale)
    (u, v), (other_u, other_v) = _ends(centred, angle, torch.where(chosen >= 2, 0.0, apart))
    other_u = torch.where(chosen >= 2, other_u - apart * torch.cos(angle), other_u)
    other_v = torch.where(chosen >= 2, other_v - apart * torch.sin(angle), other_v)
    thickness = uniform(generator, 0.045, 0.065, count, 1, 1)
    ring = (torch.hypot(u, v) - a).abs() - thickness
    other = (torch.hypot(other_u, other_v) - b).abs() - thickness
    return frame.cover(torch.minimum(ring, other))


def draw_sizes(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw two balls, or two boxes, next to each other.

    Classes: how large the left one is in comparison with the right one; their widths are as 2 to 5, 2 to 3, equal,
    3 to 2 or 5 to 2, give or take a twelfth. Nuisance: the sum of the widths, the gap, both heights, balls or boxes,
    the place.
    """
    count = len(labels)
    frame = place(count, generator, scale=(0.88, 0.98))
    ratio = torch.tensor(list(SIZES.values()))[labels] * torch.exp(uniform(generator, -0.08, 0.08, count))
    together = uniform(generator, 0.62, 0.84, count)
    left = (together * ratio / (1 + ratio))[:, None, None]
    right = (together / (1 + ratio))[:, None, None]
    gap = uniform(generator, 0.1, 0.2, count, 1, 1)
    height = uniform(generator, -0.22, 0.22, 2, count, 1, 1)
    boxes = torch.rand(count, 1, 1, generator=generator) < 0.5
    # The row of both is centred: it reaches from -(left + right + gap / 2) to the same on the right.
    half = left + right + gap / 2
    things = []
    for radius, centre, level in ((left, left - half, height[0]), (right, half - right, height[1])):
        u, v = frame.u - centre, frame.v - level
        ball = torch.hypot(u, v) - radius
        box = torch.maximum(u.abs(), v.abs()) - 0.92 * radius
        things.append(torch.where(boxes, box, ball))
    return frame.cover(torch.minimum(*things))


def draw_covers(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw two different shapes, one partly behind the other, with a gap around the front shape.

    Classes: which of circle, square and triangle is in front of which, in six ways. Nuisance: the direction from one
    to the other, how far apart they are, both turns and sizes, the place.
    """
    count = len(labels)
    pairs = torch.tensor(list(permutations(range(len(_COVERING)), 2)))[labels]
    frame = place(count, generator, scale=(0.88, 1.0))
    angle = uniform(generator, -math.pi, math.pi, count, 1, 1)
    size = uniform(generator, 0.5, 0.58, 2, count, 1, 1)
    apart = (size[0] + size[1]) * uniform(generator, 0.52, 0.64, count, 1, 1)
    turns = uniform(generator, -0.35, 0.35, 2, count, 1, 1)
    views = _ends(frame, angle, apart)
    front, back = (
        _shape_distance(pairs[:, i, None, None], Frame(*views[i], frame.scale).turned(turns[i]), size[i])
        for i in (0, 1)
    )
    return torch.maximum(frame.cover(front), torch.minimum(frame.cover(back), frame.cover(0.13 - front)))


def _shape_distance(kind: Tensor, frame: Frame, size: Tensor) -> Tensor:
    """Return the distance to a shape of `_COVERING` by its number, of about the same area for all."""
    triangle = (
        polygon_distance(Frame(frame.u / size, frame.v / size, frame.scale), torch.full_like(size, 3)) * size
    )
    square = torch.maximum(frame.u.abs(), frame.v.abs()) - 0.88 * size
    circle = frame.radius() - size
    # A triangle inscribed in a circle of the same size is much smaller.
    return torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle - 0.12))
