"""Draw random fields: types of noise, and mosaics with and without symmetry."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from mergeability.data.rendered.canvas import SIZE, Frame, pixel_centres, place, segment_distance, uniform
from mergeability.data.rendered.glyphs import sample_glyphs
from mergeability.data.rendered.subjects.subject import Ink, Labels, by_class

NOISES = ("grain", "clouds", "streaks", "tiles", "specks", "scratches")
SYMMETRIES = ("left to right", "top to bottom", "both ways", "nowhere")
# The side of a mosaic, in cells; even, so that an axis of symmetry runs between cells.
_CELLS = 6


def _stretched(count: int, rows: int, columns: int, frame: Frame, generator: Generator) -> Ink:
    """Spread a small grid of random values over the canvas, smoothly, along the axes of the frame."""
    values = torch.rand(count, rows, columns, generator=generator)
    # More contrast: interpolation between neighbours has taken some away.
    return (sample_glyphs(values, frame) * 1.6 - 0.3).clamp(0, 1)


def _scattered(count: int, generator: Generator, lines: bool) -> Ink:
    """Draw a few dozen specks, or seven to ten thin lines."""
    x, y = pixel_centres()
    ink = torch.zeros(count, SIZE, SIZE)
    most = 10 if lines else 40
    wanted = uniform(generator, 7 if lines else 24, most, count, 1, 1)
    for number in range(most):
        ends = uniform(generator, -1.1, 1.1, 4, count, 1, 1)
        if lines:
            distance = segment_distance(x, y, (ends[0], ends[1]), (ends[2], ends[3]))
        else:
            distance = torch.hypot(x - ends[0], y - ends[1])
        mark = ((1.0 if lines else 1.3) - distance * (SIZE / 2)).clamp(0, 1)
        ink = torch.maximum(ink, mark * (number < wanted))
    return ink


def draw_noise(labels: Labels, generator: Generator, split: str) -> Ink:
    """Fill the canvas with noise.

    Classes: the kind of noise: grain (every pixel by itself), clouds (smooth in all directions), streaks (smooth along
    one direction), tiles (constant in small squares), specks (a few dozen points on an even ground), scratches (some
    thin lines). Nuisance: the direction, the phase, the values themselves and the contrast.
    """
    count = len(labels)
    # One and a half times the canvas, so that no turn brings the border of the grid into view.
    frame = place(count, generator, scale=(1.5, 1.5), turn=math.pi, drift=0)
    tilted = place(count, generator, scale=(1.4, 1.6), turn=0.2, drift=0.2)

    def grain(part: Frame) -> Ink:
        return torch.rand(len(part.u), SIZE, SIZE, generator=generator)

    def clouds(part: Frame) -> Ink:
        return _stretched(len(part.u), 8, 8, part, generator)

    def streaks(part: Frame) -> Ink:
        return _stretched(len(part.u), 28, 3, part, generator)

    def tiles(part: Frame) -> Ink:
        values = torch.rand(len(part.u), 9, 9, generator=generator)
        return sample_glyphs(values.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2), part)

    def specks(part: Frame) -> Ink:
        return _scattered(len(part.u), generator, lines=False)

    def scratches(part: Frame) -> Ink:
        return _scattered(len(part.u), generator, lines=True)

    # A mosaic of tiles hardly turns, or its tiles would no longer be squares of pixels.
    square = (labels == NOISES.index("tiles"))[:, None, None]
    shown = Frame(torch.where(square, tilted.u, frame.u), torch.where(square, tilted.v, frame.v), frame.scale)
    drawings: list[Callable[[Frame], Ink]] = [grain, clouds, streaks, tiles, specks, scratches]
    return by_class(labels, shown, drawings) * uniform(generator, 0.6, 1, count, 1, 1)


def draw_mirrors(labels: Labels, generator: Generator, split: str) -> Ink:
    """Draw a mosaic of six by six cells, each filled or empty.

    Classes: how it is mirrored: its right half mirrors its left half, its lower half its upper half, both, or neither.
    Nuisance: the mosaic itself, a slight turn, the size and the place.
    """
    count = len(labels)
    cells = (torch.rand(count, _CELLS, _CELLS, generator=generator) < 0.5).float()
    cells = _mirrored(cells, (labels == 0) | (labels == 2), dim=2)
    cells = _mirrored(cells, (labels == 1) | (labels == 2), dim=1)
    frame = place(count, generator, scale=(0.75, 0.92), turn=0.08)
    crisp = cells.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    return sample_glyphs(crisp, frame)


def _mirrored(cells: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Replace the second half of the chosen mosaics along `dim` by the mirror image of the first."""
    first = cells.narrow(dim, 0, _CELLS // 2)
    return torch.where(chosen[:, None, None], torch.cat([first, first.flip(dim)], dim=dim), cells)
