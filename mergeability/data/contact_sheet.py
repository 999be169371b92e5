"""Draw a contact sheet: small images with their class names, for visual inspection."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Sizes in pixels: the picture, the caption line and the margin.
_PICTURE, _LINE, _GAP = 96, 14, 6


@dataclass(frozen=True)
class Cell:
    """Hold one image and its caption."""

    pixels: UInt8[Tensor, "3 H W"]
    caption: str


def contact_sheet(cells: Sequence[Cell]) -> Image.Image:
    """Arrange images in a nearly square grid, with captions that are cut to the width of the images."""
    columns = max(1, math.ceil(math.sqrt(len(cells) * (_PICTURE + _LINE) / _PICTURE)))
    width, height = _PICTURE + _GAP, _PICTURE + _LINE + _GAP
    sheet = Image.new(
        "RGB", (columns * width + _GAP, max(1, math.ceil(len(cells) / columns)) * height + _GAP), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, cell in enumerate(cells):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        picture = Image.fromarray(cell.pixels.permute(1, 2, 0).contiguous().numpy())
        scale = _PICTURE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # Enlarge small images without interpolation, which would blur their pixels.
        way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(size, way), (left, top))
        draw.text((left, top + _PICTURE), _cut(cell.caption, font), fill="black", font=font)
    return sheet


def _cut(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(caption) <= _PICTURE:
        return caption
    while caption and font.getlength(f"{caption}…") > _PICTURE:
        caption = caption[:-1]
    return f"{caption}…"
