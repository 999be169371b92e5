"""Files of images to pixels: RGB as a person sees them, decoded by several threads in a bounded memory."""

import io
import os
import struct
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

T = TypeVar("T")

# What Pillow raises for files that are not, or no longer, images.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# More than eight bits a channel: Pillow would clip them to white.
_DEEP = ("I", "F")
# Images that wait, encoded or decoded, for each thread.
_AHEAD = 16


@dataclass(frozen=True)
class Encoded:
    """One image as it is stored: its label, what to call it in a message, and its bytes or its file."""

    name: str
    label: int
    data: bytes | Path


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """What became of one image: `value`, or the reason why there is none."""

    name: str
    label: int
    value: T | None
    error: str | None = None


def decode(data: bytes | Path, transpose: bool = False) -> UInt8[Tensor, "3 H W"]:
    """Decode one image as RGB, turned as its EXIF orientation says; transparency is dropped, as CLIP does.

    transpose: swap rows and columns, for files that hold their images so.

    Raises:
        OSError: it is not an image, is truncated, or has more than eight bits a channel.
    """
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
        if image.mode.startswith(_DEEP):
            raise OSError(f"images of mode {image.mode} have more than eight bits a channel")
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P":
            # Pillow warns where a palette has transparency and is not taken through RGBA.
            upright = upright.convert("RGBA")
        pixels = np.asarray(upright.convert("RGB"))
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def decoded(
    images: Iterable[Encoded], work: Callable[[UInt8[Tensor, "3 H W"]], T], transpose: bool = False
) -> Iterator[Decoded[T]]:
    """Decode images and apply `work` to each, in threads; yield the results in order.

    Only some images for each thread are in memory at a time, however many there are.
    """

    def one(image: Encoded) -> Decoded[T]:
        try:
            pixels = decode(image.data, transpose)
        except _BROKEN as error:
            return Decoded(image.name, image.label, None, f"{type(error).__name__}: {error}")
        return Decoded(image.name, image.label, work(pixels))

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
