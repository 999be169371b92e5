"""Draw a pen stroke of one of eight kinds."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import place, segment_distance, uniform
from mergeability.data.rendered.subjects.subject import Ink, Labels

STROKES = ("zigzag", "wave", "spiral", "loop", "hook", "eight", "arch", "staircase")
_SEGMENTS = 24


def _centre_lines() -> Float[Tensor, "8 25 2"]:
    """Return the points of every stroke at its plainest, in the order of `STROKES`, within [-1, 1]²."""
    t = torch.linspace(0, 1, _SEGMENTS + 1)
    along = 2 * t - 1
    # Two and a half periods of a triangle wave.
    zigzag = (along, 0.5 - (2 * torch.remainder(2.5 * t, 1) - 1).abs())
    wave = (along, 0.4 * torch.sin(3 * math.pi * t))
    spiral = ((0.1 + 0.85 * t) * torch.cos(4 * math.pi * t), (0.1 + 0.85 * t) * torch.sin(4 * math.pi * t))
    s = 1.3 * along
    loop = (1.1 * s * (s**2 - 1), 1.05 * s**2 - 0.9)
    # A straight stem down to t = 0.5, then half a circle.
    turn = ((t - 0.5) / 0.5).clamp(min=0) * math.pi
    hook = (0.45 * torch.cos(turn), 0.95 - 2.8 * t.clamp(max=0.5) - 0.45 * torch.sin(turn))
    eight = (0.55 * torch.sin(4 * math.pi * t), 0.95 * torch.cos(2 * math.pi * t))
    arch = (0.85 * torch.cos(math.pi * t), 1.2 * torch.sin(math.pi * t) - 0.6)
    # Three treads and three risers of four segments each, alternately.
    steps = torch.arange(_SEGMENTS + 1)
    treads = (steps // 8) * 4 + (steps % 8).clamp(max=4)
    staircase = (treads / 6 - 1, (steps - treads) / 6 - 1)
    lines = (zigzag, wave, spiral, loop, hook, eight, arch, staircase)
    return torch.stack([torch.stack(line, dim=-1) for line in lines])


def draw_strokes(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw one pen stroke per image.

    Classes: the kind of stroke: a zigzag, a wave, a spiral, a loop that crosses itself once, a hook (a stem and half
    a circle), an eight, an arch, a staircase. Nuisance: an unsteady hand, mirroring, slant, stretch, turn, size,
    place and the width of the pen.
    """
    count = len(labels)
    points = _centre_lines()[labels]
    t = torch.linspace(0, 1, _SEGMENTS + 1)
    # The hand is unsteady: two slow waves in each direction.
    phase = uniform(generator, 0, 2 * math.pi, 2, count, 1, 2)
    size = uniform(generator, 0.02, 0.09, 2, count, 1, 2)
    for cycles in (1, 2):
        swing = torch.sin(2 * math.pi * cycles * t[None, :, None] + phase[cycles - 1])
        points = points + size[cycles - 1] * swing
    mirrored = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1.0, 1.0)
    slant = uniform(generator, -0.25, 0.25, count, 1)
    stretch = uniform(generator, 0.8, 1.0, 2, count, 1)
    x = stretch[0] * (mirrored * points[..., 0] + slant * points[..., 1])
    y = stretch[1] * points[..., 1]
    frame = place(count, generator, scale=(0.65, 0.88), turn=0.4)
    thickness = uniform(generator, 0.07, 0.13, count, 1, 1)
    distance = torch.full_like(frame.u, torch.inf)
    for i in range(_SEGMENTS):
        start = (x[:, i, None, None], y[:, i, None, None])
        end = (x[:, i + 1, None, None], y[:, i + 1, None, None])
        distance = torch.minimum(distance, segment_distance(frame.u, frame.v, start, end))
    return frame.cover(distance - thickness)
