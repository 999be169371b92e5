"""Draw scenes: dots to count, arrows, clocks, and a circle on one side of a square."""

import math

import torch
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import SIZE, Frame, pixel_centres, place, segment_distance, uniform
from mergeability.data.rendered.subjects.subject import NUMBERS, Ink, Labels

HOURS = (*NUMBERS[1:], "eleven", "twelve")
DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
RELATIONS = ("right of", "above", "left of", "below")


def draw_dots(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw `label` + 1 separate dots, whose size varies between images."""
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


def draw_arrows(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw an arrow of any size and position that points in one of eight directions."""
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
    """Draw a clock face with a random minute hand; the class is the hour shown by the short thick hand."""
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


def draw_positions(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a square at a random position and size, and a circle on one side of it; the class is this side."""
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
