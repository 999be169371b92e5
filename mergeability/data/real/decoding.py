"""Decode image files to upright RGB images, with several threads and limited memory."""

import io
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mergeability.data.real.image_files import formats

T = TypeVar("T")

# Exceptions of Pillow for invalid or damaged images: its readers do not validate the contents of files.
_BROKEN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, Image.DecompressionBombError,
    Image.DecompressionBombWarning, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip
# Above twice its limit Pillow raises an error; below, its warning does not name the file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
DEEP = "more than eight bits a channel, scaled from 0..65535 to 0..255"
SEVERAL = "several frames or pages, of which the first is used"
_WRONG_NAMES = {
    b"PK": "a zip archive",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzip archive",
    b"<": "a text or SVG file",
}
# Number of encoded or decoded images queued per thread.
_AHEAD = 16


@dataclass(frozen=True)
class Encoded:
    """Hold one encoded image: its label, its name in messages, and its bytes or file."""

    name: str
    label: int
    data: bytes | Path


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """Hold the result of decoding one image: `value` or the reason for failure, and any changes that decoding made."""

    name: str
    label: int
    value: T | None
    error: str | None = None
    remark: str | None = None


def decode(data: bytes | Path, transpose: bool = False) -> UInt8[Tensor, "3 H W"]:
    """Decode one image as RGB and rotate it by its EXIF orientation; ignore transparency, as CLIP does.

    16-bit greyscale is scaled to eight bits. Of several frames the first is used.

    Args:
        data: the file, or its bytes.
        transpose: swap rows and columns, for files with transposed images.

    Raises:
        OSError: the file is not an image, is truncated, or has values of unknown range. Pillow's readers raise other
            errors for damaged files, which `decoded` handles.
    """
    return _decode(data, transpose)[0]


def _decode(data: bytes | Path, transpose: bool) -> tuple[UInt8[Tensor, "3 H W"], str | None]:
    if isinstance(data, Path) and not data.is_file():
        # Reading a pipe would block forever.
        raise FileNotFoundError("a link that leads nowhere" if data.is_symlink() else "there is no such file")
    try:
        opened = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=formats())
    except Image.UnidentifiedImageError:
        raise Image.UnidentifiedImageError(_identified(data)) from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise OSError(f"more than {most:.0f} million pixels: make it smaller") from None
    with opened as image:
        several = getattr(image, "is_animated", False)
        upright = ImageOps.exif_transpose(image)
        pixels, remark = _pixels(upright, image.format or "")
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), remark or (SEVERAL if several else None)


def _pixels(image: Image.Image, kind: str) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
    """Return an image's pixels as RGB, and the changes made."""
    mode = image.mode
    # Pillow's readers of these formats give 0..65535 in 32 bits.
    if mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.uint32)
        scaled = ((grey + 128) // 257).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, axis=2), DEEP
    if mode.startswith(("I", "F")):
        raise OSError(
            f"images of mode {mode} have more than eight bits a channel, and their white level is unknown: "
            "convert them to eight bits"
        )
    if mode in ("P", "PA"):
        # Pillow warns where a palette has transparency and is not taken through RGBA.
        image = image.convert("RGBA")
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.replace("a", "A"))
    return np.asarray(image.convert("RGB")), None


def _identified(data: bytes | Path) -> str:
    """Describe a file that is not an image."""
    if isinstance(data, bytes):
        beginning = data[:8]
    else:
        with data.open("rb") as file:
            beginning = file.read(8)
    if not beginning:
        return "the file is empty"
    known = (what for bytes_, what in _WRONG_NAMES.items() if beginning.startswith(bytes_))
    return f"{next(known, 'the file')} is no image that Pillow reads"


def decoded(
    images: Iterable[Encoded], work: Callable[[UInt8[Tensor, "3 H W"]], T], transpose: bool = False
) -> Iterator[Decoded[T]]:
    """Decode images and apply `work` to each in several threads; yield the results in order.

    Only a few images per thread are in memory at a time.
    """

    def one(image: Encoded) -> Decoded[T]:
        try:
            pixels, remark = _decode(image.data, transpose)
        except _BROKEN as error:
            return Decoded(image.name, image.label, None, f"{type(error).__name__}: {error}")
        return Decoded(image.name, image.label, work(pixels), remark=remark)

    threads = min(16, os.cpu_count() or 1)
    remaining = iter(images)
    with ThreadPoolExecutor(threads, thread_name_prefix="decoding") as pool:
        waiting: deque[Future[Decoded[T]]] = deque()
        try:
            waiting.extend(pool.submit(one, image) for image in islice(remaining, _AHEAD * threads))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(one, image) for image in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)
