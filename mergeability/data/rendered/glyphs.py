"""Create glyphs: small grey images of handwritten digits, and of letters in several fonts."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mergeability.data.rendered.canvas import Frame
from mergeability.random import seeded_generator

GLYPH_SIZE = 28
LETTERS = tuple("ABCEHKMORSTZ")

# Share of the handwritten originals of each split; the rest belongs to "train".
_HELD_OUT_SHARES = {"pretraining": 0.2, "validation": 0.1, "test": 0.25}


@cache
def handwritten_digits(split: str) -> tuple[Float[Tensor, "M 8 8"], Int64[Tensor, "M"]]:
    """Return one split of scikit-learn's handwritten digits: images with intensities in [0, 1], and their labels.

    The 1,797 originals are divided once, in an order that no seed moves, so that no original is ever in two
    splits, whatever the seeds of the tasks that draw from them.
    """
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels, dtype=np.float32).reshape(-1, 8, 8) / 16)
    values = torch.from_numpy(np.asarray(targets, dtype=np.int64))
    order = torch.randperm(len(values), generator=seeded_generator("handwritten digits"))
    start = 0
    parts = {}
    for name, share in _HELD_OUT_SHARES.items():
        stop = start + round(share * len(order))
        parts[name] = order[start:stop]
        start = stop
    parts["train"] = order[start:]
    return images[parts[split]], values[parts[split]]


@cache
def letter_fonts() -> Float[Tensor, "fonts letters 28 28"]:
    """Draw twelve capital letters in three of Pillow's fonts, and return the ink of every pixel, in [0, 1].

    The fonts are Pillow's two bundled fonts, an outline one and a coarse bitmap one, and the outline font in bold.
    """
    outline = ImageFont.load_default(size=24)
    bitmap = ImageFont.load_default_imagefont()
    fonts = [
        [_drawn(letter, outline, stroke=0) for letter in LETTERS],
        [_drawn(letter, outline, stroke=1) for letter in LETTERS],
        [_drawn(letter, bitmap, stroke=0) for letter in LETTERS],
    ]
    return torch.stack([torch.stack(font) for font in fonts]).clamp(0, 1)


def _drawn(letter: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, stroke: int) -> Tensor:
    """Draw one letter and fit the widest side of its inked box, less the stroke, to the glyph's square."""
    page = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(page).text((16, 16), letter, fill=255, font=font, stroke_width=stroke)
    plain = Image.new("L", (64, 64), 0)
    # Use the box of the plain letter, so that normal and bold letters are aligned.
    ImageDraw.Draw(plain).text((16, 16), letter, fill=255, font=font)
    left, top, right, bottom = plain.getbbox() or (0, 0, 64, 64)
    half = max(right - left, bottom - top) / 2 * 1.15
    centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    square = page.resize((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255)


def sample_glyphs(glyphs: Float[Tensor, "N h w"], frame: Frame) -> Float[Tensor, "N 32 32"]:
    """Interpolate one glyph bilinearly over each object's square [-1, 1]²; ink outside the square is 0."""
    grid = torch.stack([frame.u, -frame.v], dim=-1)
    return torch.nn.functional.grid_sample(
        glyphs[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )[:, 0]
