"""Provide coordinates, anti-aliased outlines and colours to all rendered subjects.

Everything is vectorised over images. A canvas spans [-1, 1] in both directions, x to the right and y up,
so that angles are the mathematical ones. *Ink* is the coverage of each pixel by the subject, in [0, 1].
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

SIZE = 32

HUES = {
    "red": 0.0,
    "orange": 0.085,
    "yellow": 0.165,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.635,
    "purple": 0.77,
    "pink": 0.9,
}


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw uniform random numbers in [low, high), in float32."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


def pixel_centres() -> tuple[Float[Tensor, "32 32"], Float[Tensor, "32 32"]]:
    """Return the x and y coordinates of the pixel centres."""
    ticks = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * (2 / SIZE) - 1
    y, x = torch.meshgrid(-ticks, ticks, indexing="ij")
    return x, y


@dataclass(frozen=True)
class Frame:
    """Hold pixel coordinates relative to an object of radius 1, one object per image.

    u, v: coordinates in the object's own axes. scale: its radius in canvas units.
    """

    u: Float[Tensor, "N 32 32"]
    v: Float[Tensor, "N 32 32"]
    scale: Float[Tensor, "N 1 1"]

    def cover(self, distance: Float[Tensor, "N 32 32"]) -> Float[Tensor, "N 32 32"]:
        """Convert signed distances (negative inside) to ink in [0, 1] with a soft edge of one pixel."""
        return (0.5 - distance * self.scale * (SIZE / 2)).clamp(0, 1)

    def rows(self, chosen: Tensor) -> "Frame":
        """Return the pixel coordinates of the images that a boolean mask selects."""
        return Frame(self.u[chosen], self.v[chosen], self.scale[chosen])

    def radius(self) -> Float[Tensor, "N 32 32"]:
        """Return the distance of every pixel to the object's centre."""
        return torch.hypot(self.u, self.v)

    def angle(self) -> Float[Tensor, "N 32 32"]:
        """Return the angle of every pixel around the object's centre, in [-pi, pi]."""
        return torch.atan2(self.v, self.u)

    def turned(self, angle: Float[Tensor, "N 1 1"]) -> "Frame":
        """Rotate the object of each image counter-clockwise by the angle given for this image, in radians."""
        cosine, sine = torch.cos(angle), torch.sin(angle)
        return Frame(cosine * self.u + sine * self.v, cosine * self.v - sine * self.u, self.scale)


def place(
    count: int,
    generator: Generator,
    scale: tuple[float, float] = (0.5, 0.85),
    turn: float = 0.0,
    drift: float = 0.6,
) -> Frame:
    """Place one object per image near the centre, with a random size and rotation.

    The size is drawn uniformly from the range `scale`, and the rotation from [-`turn`, `turn`], in radians.

    drift: how much of the room around the object its centre may use; at 1 the object touches the border.
    """
    size = uniform(generator, *scale, count, 1, 1)
    room = drift * (1 - size)
    centre_x = room * uniform(generator, -1, 1, count, 1, 1)
    centre_y = room * uniform(generator, -1, 1, count, 1, 1)
    x, y = pixel_centres()
    frame = Frame((x - centre_x) / size, (y - centre_y) / size, size)
    return frame.turned(uniform(generator, -turn, turn, count, 1, 1)) if turn else frame


def segment_distance(
    u: Tensor, v: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]
) -> Float[Tensor, "N 32 32"]:
    """Return the distance of every pixel to a line segment, one segment per image."""
    along_u, along_v = end[0] - start[0], end[1] - start[1]
    length_squared = (along_u**2 + along_v**2).clamp(min=1e-12)
    position = ((u - start[0]) * along_u + (v - start[1]) * along_v) / length_squared
    position = position.clamp(0, 1)
    return torch.hypot(u - start[0] - position * along_u, v - start[1] - position * along_v)


def polygon_distance(frame: Frame, sides: Float[Tensor, "N 1 1"]) -> Float[Tensor, "N 32 32"]:
    """Return the signed distance to a regular polygon inscribed in the unit circle; one corner is at the top."""
    sector = 2 * math.pi / sides
    offset = torch.remainder(frame.angle() - math.pi / 2, sector) - sector / 2
    return frame.radius() * torch.cos(offset) - torch.cos(sector / 2)


def hsl_to_rgb(
    hue: Float[Tensor, "N"], saturation: Float[Tensor, "N"], lightness: Float[Tensor, "N"]
) -> Float[Tensor, "N 3 1 1"]:
    """Convert hue, saturation and lightness to red, green and blue, all in [0, 1]."""
    offsets = torch.tensor([0.0, 2.0, 4.0])
    ramp = (torch.remainder(hue[:, None] * 6 - offsets, 6) - 3).abs() - 1
    chroma = saturation * torch.minimum(lightness, 1 - lightness)
    rgb = lightness[:, None] + chroma[:, None] * (ramp.clamp(0, 1) * 2 - 1)
    return rgb[:, :, None, None]


def paint(
    ink: Float[Tensor, "N 32 32"] | Float[Tensor, "N colours 32 32"],
    generator: Generator,
    clutter: float,
    hues: Int64[Tensor, "N"],
) -> UInt8[Tensor, "N 3 32 32"]:
    """Colour the ink, draw it on an uneven background with stray lines, and add sensor noise.

    ink: one layer, or one for each colour of a subject, which lie a quarter of the colour wheel apart. hues: position
    in `HUES` of each subject's (first) colour; the background's hue is free. clutter: in [0, 1], how
    weak the contrast, how uneven the background, how frequent negatives (dark ink on a light background) and
    stray lines, and how strong the noise are.
    """
    count = len(ink)
    background = uniform(generator, 0.05, 0.35, count)
    lightness = background + uniform(generator, 0.4 - 0.1 * clutter, 0.55, count)
    negative = torch.rand(count, generator=generator) < 0.3 * clutter
    background = torch.where(negative, 1 - background, background)
    lightness = torch.where(negative, 1 - lightness, lightness)
    hue = torch.tensor(list(HUES.values()))[hues] + uniform(generator, -0.02, 0.02, count)
    saturation = uniform(generator, 0.7, 1, count)
    ground = hsl_to_rgb(uniform(generator, 0, 1, count), uniform(generator, 0, 0.8, count), background)
    canvas = ground + clutter * _unevenness(count, generator)
    canvas = _with_stray_lines(canvas, generator, clutter)
    layers = ink[:, None] if ink.ndim == 3 else ink
    for number, layer in enumerate(layers.unbind(1)):
        subject = hsl_to_rgb(hue + number / 4, saturation, lightness.clamp(0.25, 0.75))
        canvas = torch.lerp(canvas, subject.expand_as(canvas), layer[:, None])
    noise = uniform(generator, 0.01, 0.02 + 0.03 * clutter, count, 1, 1, 1)
    canvas = canvas + noise * torch.randn(canvas.shape, generator=generator)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def _unevenness(count: int, generator: Generator) -> Float[Tensor, "N 3 32 32"]:
    coarse = torch.randn(count, 3, 4, 4, generator=generator) * uniform(generator, 0, 0.08, count, 1, 1, 1)
    return torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def _with_stray_lines(
    canvas: Float[Tensor, "N 3 32 32"], generator: Generator, clutter: float
) -> Float[Tensor, "N 3 32 32"]:
    count = len(canvas)
    x, y = pixel_centres()
    ends = uniform(generator, -1, 1, 4, count, 1, 1)
    distance = segment_distance(x, y, (ends[0], ends[1]), (ends[2], ends[3]))
    drawn = (torch.rand(count, 1, 1, generator=generator) < 0.3 * clutter).float()
    line = (1 - distance * (SIZE / 2)).clamp(0, 1) * drawn
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.lerp(canvas, colour.expand_as(canvas), line[:, None])
