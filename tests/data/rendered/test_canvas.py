"""The canvas against plain geometry, Python's own colour conversion and hand-made segments."""

import colorsys
import math

import numpy as np
import pytest
import torch

from mergeability.data.rendered.canvas import (
    HUES,
    Frame,
    hsl_to_rgb,
    paint,
    pixel_centres,
    place,
    polygon_distance,
    segment_distance,
)
from mergeability.random import seeded_generator


def unit_frame(scale: float) -> Frame:
    x, y = pixel_centres()
    return Frame(x[None] / scale, y[None] / scale, torch.full((1, 1, 1), scale))


def test_pixel_centres_span_the_canvas_with_y_up():
    x, y = pixel_centres()
    expected = (np.arange(32) + 0.5) / 16 - 1
    np.testing.assert_allclose(x[5].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(y[:, 5].numpy(), -expected, atol=1e-6)


def test_colours_agree_with_the_standard_library():
    hue, saturation, lightness = torch.rand(3, 50, generator=seeded_generator("colours"))
    converted = hsl_to_rgb(hue, saturation, lightness)[:, :, 0, 0]
    expected = [
        colorsys.hls_to_rgb(h, li, s)
        for h, s, li in zip(hue.tolist(), saturation.tolist(), lightness.tolist())
    ]
    np.testing.assert_allclose(converted.numpy(), np.array(expected), atol=1e-5)


def test_a_covered_circle_has_the_area_of_a_circle():
    frame = unit_frame(0.8)
    pixels = float(frame.cover(frame.radius() - 1).sum())
    assert pixels == pytest.approx(math.pi * (0.8 * 16) ** 2, rel=0.01)


@pytest.mark.parametrize("sides", [3, 4, 5, 6, 8])
def test_a_covered_polygon_has_the_area_of_the_polygon(sides):
    frame = unit_frame(0.9)
    ink = frame.cover(polygon_distance(frame, torch.full((1, 1, 1), float(sides))))
    expected = sides / 2 * math.sin(2 * math.pi / sides) * (0.9 * 16) ** 2
    assert float(ink.sum()) == pytest.approx(expected, rel=0.02)


def test_distance_to_a_segment_agrees_with_a_dense_sampling_of_it():
    x, y = pixel_centres()
    start, end = (-0.5, 0.3), (0.4, -0.7)
    ends = [tuple(torch.full((1, 1, 1), value) for value in point) for point in (start, end)]
    distance = segment_distance(x[None], y[None], *ends)[0].numpy()
    along = np.linspace(0, 1, 2001)[:, None, None]
    points_x = start[0] + along * (end[0] - start[0])
    points_y = start[1] + along * (end[1] - start[1])
    expected = np.hypot(x.numpy() - points_x, y.numpy() - points_y).min(axis=0)
    np.testing.assert_allclose(distance, expected, atol=1e-3)


def test_a_turned_frame_turns_the_object_counter_clockwise():
    frame = unit_frame(1.0).turned(torch.full((1, 1, 1), math.pi / 2))
    # An object's own +u axis now points up: the pixel at the top centre has u near 1.
    assert float(frame.u[0, 0, 16]) == pytest.approx(31 / 32)


def test_placed_objects_stay_on_the_canvas():
    frame = place(200, seeded_generator("place"), scale=(0.3, 0.9), drift=1.0)
    ink = frame.cover(frame.radius() - 1)
    area = math.pi * (frame.scale[:, 0, 0] * 16) ** 2
    assert ((ink.sum(dim=(1, 2)) / area - 1).abs() < 0.05).all()


def test_paint_without_ink_hides_the_subjects_colour():
    blank = torch.zeros(4, 32, 32)
    red, blue = (torch.full((4,), list(HUES).index(name)) for name in ("red", "blue"))
    painted = [paint(blank, seeded_generator("paint"), 1.0, hues) for hues in (red, blue)]
    assert torch.equal(*painted)


@pytest.mark.parametrize("name", list(HUES))
def test_paint_gives_the_ink_the_hue_asked_for(name):
    full = torch.ones(20, 32, 32)
    hues = torch.full((20,), list(HUES).index(name))
    mean = paint(full, seeded_generator("paint"), 0.0, hues).float().mean(dim=(2, 3)) / 255
    for red, green, blue in mean.tolist():
        hue = colorsys.rgb_to_hls(red, green, blue)[0]
        difference = abs((hue - HUES[name] + 0.5) % 1 - 0.5)
        assert difference < 0.04


def test_generators_are_fixed_by_all_their_parts():
    def draw(*parts: str | int) -> list[float]:
        return torch.rand(4, generator=seeded_generator(*parts)).tolist()

    assert draw("a", 1) == draw("a", 1)
    assert (
        len({tuple(draw(*parts)) for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", "")]}) == 5
    )
