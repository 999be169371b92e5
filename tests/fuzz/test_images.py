"""Random folders of images, most of them odd or damaged: each ends in a value or in one sentence, and no file is lost."""

import io
import os
import random
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mergeability.data.doctor import examine
from mergeability.data.image_cache import prepared, remarks
from mergeability.data.inputs import SPLITS
from mergeability.data.real.image_files import list_images, shown
from mergeability.data.real.layouts import Layout
from mergeability.data.real.source import image_task
from mergeability.data.unlabelled import draw_images
from mergeability.errors import UserError
from mergeability.store import Store

CLASSES = ("café", "thé vert", "dog")
IN_EACH_RUN, IN_THE_SLOW_TIER = 20, 300
LONGEST_SECONDS = 60

# Pillow warns of damaged metadata, of which nothing is used.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::DeprecationWarning:PIL")


def resized(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(images.float(), (8, 8)).byte()


class Tree:
    """A folder as people have it, and worse, made from a seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.pixels = np.random.default_rng(seed)
        oddness = self.random.choice([0.0, 0.1, 0.3, 0.8])
        for split in ("train", "test", "validation", "val", "Test"):
            if self.random.random() < {"train": 0.97, "test": 0.95, "validation": 0.4}.get(split, 0.05):
                self._split(root / split, oddness)
        for _ in range(self.random.randrange(3)):
            self._odd(root)

    def _split(self, folder: Path, oddness: float) -> None:
        folder.mkdir()
        for name in CLASSES:
            if self.random.random() < 0.05:
                continue
            place = folder / (self._variant(name) if self.random.random() < oddness else name)
            place.mkdir(exist_ok=True, parents=True)
            for _ in range(self.random.choice([0, 1, 2, 5, 12])):
                (self._odd if self.random.random() < oddness else self._image)(place)
        if self.random.random() < oddness / 4:
            self._odd(folder)

    def _variant(self, name: str) -> str:
        return self.random.choice(
            [
                unicodedata.normalize("NFD", name), name.upper(), f" {name} ", name.replace(" ", "_"), "zebra", "2", "",
                f"{name}/inner", ".hidden", "__MACOSX", "x.jpg", os.fsdecode(b"caf\xe9"), "\x1b[31m",
            ]
        )  # fmt: skip

    def _picture(self) -> Image.Image:
        height, width = self.random.choice([1, 7, 8, 30]), self.random.choice([1, 8, 9])
        image = Image.fromarray(self.pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
        mode = self.random.choice(
            ["RGB", "RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr"]
        )
        if mode == "I;16":
            return Image.fromarray(self.pixels.integers(0, 65536, (height, width), dtype=np.uint16))
        if mode in ("I", "F"):
            return image.convert("L").convert(mode)
        return image.convert(mode)

    def _encoded(self) -> tuple[bytes, str]:
        kinds = {
            "PNG": ".png",
            "JPEG": ".jpg",
            "GIF": ".gif",
            "TIFF": ".tif",
            "WEBP": ".webp",
            "BMP": ".bmp",
            "PPM": ".ppm",
        }
        written = io.BytesIO()
        while True:
            kind = self.random.choice([*kinds])
            options = (
                {"save_all": True, "append_images": [self._picture()]} if self.random.random() < 0.1 else {}
            )
            try:
                self._picture().save(written, kind, **options)
            except (OSError, ValueError, KeyError, RuntimeError):
                written = io.BytesIO()  # That format has no such mode.
                continue
            return written.getvalue(), kinds[kind]

    def _free(self, folder: Path, ending: str) -> Path:
        stem = self.random.choice(
            ["a", "IMG 1", "ü", "x" * 200, "-rf", "#", "a\nb", os.fsdecode(b"\xff\xfe")]
        )
        while True:
            path = folder / f"{stem}{self.random.randrange(10**6)}{ending}"
            if not os.path.lexists(path):
                return path

    def _image(self, folder: Path) -> None:
        data, ending = self._encoded()
        self._free(folder, ending).write_bytes(data)

    def _odd(self, folder: Path) -> None:
        data, ending = self._encoded()
        what = self.random.randrange(12)
        if what == 0:
            self._free(
                folder, self.random.choice(["", ".jpe", ".JFIF", ".txt", ".heic", ".png ", ".jpg_large", "."])
            ).write_bytes(data)
        elif what == 1:
            self._free(folder, ending).write_bytes(data[: self.random.randrange(len(data) + 1)])
        elif what == 2:
            damaged = bytearray(data)
            for _ in range(self.random.choice([1, 3, 20])):
                damaged[self.random.randrange(min(len(data), self.random.choice([30, 10**6])))] = (
                    self.random.randrange(256)
                )
            self._free(folder, ending).write_bytes(damaged)
        elif what == 3:
            nothing = self.random.choice(
                [b"", b"PK\3\4", b"%PDF-1.7", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", bytes(100)]
            )
            self._free(folder, self.random.choice([".jpg", ".png", ".tga", ""])).write_bytes(nothing)
        elif what == 4:
            self._free(folder, ".png").write_bytes(enormous_png())
        elif what == 5:
            hidden = folder / self.random.choice(
                ["._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.png"]
            )
            hidden.parent.mkdir(exist_ok=True)
            hidden.write_bytes(data)
        elif what == 6:
            self._free(folder, self.random.choice([".png", "", ".txt"])).symlink_to("/nowhere/at all")
        elif what == 7:
            self._free(folder, self.random.choice(["", ".png"])).symlink_to(
                self.random.choice([".", "..", "/", folder, "../.."])
            )
        elif what == 8:
            path = self._free(folder, ".png")
            path.symlink_to(path.name)
        elif what == 9:
            os.mkfifo(self._free(folder, self.random.choice([".jpg", ""])))
        elif what == 10:
            self._free(folder, self.random.choice([".jpg", ""])).mkdir()
        else:
            target = self._free(folder, ending)
            target.write_bytes(data)
            self._free(folder, ending).symlink_to(target)


def enormous_png() -> bytes:
    """Write a file of a few hundred bytes that promises 10¹⁰ pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        )

    header = (10**5).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def one_sentence(error: UserError) -> None:
    text = str(error)
    assert text
    assert text.isprintable(), repr(text)
    assert "Traceback" not in text
    assert "0x7f" not in text, "an address in memory"


def nothing_is_lost(root: Path) -> None:
    """Every file and link below a folder is an image, or is named as left out, by itself or with a folder above it."""
    listing = list_images(root)
    named = {name for names in listing.left_out.values() for name in names}
    images = {shown(path.relative_to(root)) for path in (*listing.files, *listing.dangling)}
    for current, folders, files in os.walk(root):
        links = [name for name in folders if Path(current, name).is_symlink()]
        for name in [*files, *links]:
            path = Path(current, name).relative_to(root)
            above = {shown(one) for one in (path, *path.parents)}
            # A link to a folder in use is known by the files that it leads to.
            followed = any(one.startswith(f"{shown(path)}/") for one in images | named)
            assert (shown(path) in images) + bool(above & named) == 1 or followed, path


def tried(root: Path, folder: Path, most: float) -> list[str]:
    """Look one tree over, prepare its splits and draw from it; return how each try ended."""
    ends = []

    def attempt(what) -> None:
        began = time.monotonic()
        try:
            what()
            ends.append("value")
        except UserError as error:
            one_sentence(error)
            ends.append("sentence")
        assert time.monotonic() - began < LONGEST_SECONDS

    def task():
        return image_task(
            "pets",
            "folder",
            str(root),
            Layout(max_corrupt=most, validation="validation"),
            CLASSES,
            ["a {}"],
            1,
        )

    def read(split) -> None:
        used = task()
        found = prepared(used, split, resized, 8, Store(None))
        assert len(found) > 0
        absent = len(used.source.labels(split)) - len(found)
        said = [remark for remark in remarks(used) if "cannot be decoded" in remark]
        assert bool(said) == (absent > 0), "images that cannot be decoded are mentioned"
        assert all(remark.isprintable() for remark in remarks(used))

    attempt(lambda: examine(task(), folder))
    for split in SPLITS:
        attempt(lambda split=split: read(split))
    attempt(lambda: draw_images(root, 16, "pets", 0, resized))
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            nothing_is_lost(path)
    return ends


def all_end(seeds: range, tmp_path: Path) -> None:
    ends = []
    for seed in seeds:
        root = tmp_path / str(seed)
        root.mkdir()
        Tree(root, seed)
        ends += tried(root, tmp_path / "report", random.Random(seed).choice([0.001, 0.5, 1.0]))
    # A fuzzer that nothing gets through, or everything, tries nothing.
    assert 0.1 < ends.count("value") / len(ends) < 0.95


def test_random_folders_end_in_a_value_or_a_sentence(tmp_path):
    all_end(range(IN_EACH_RUN), tmp_path)


@pytest.mark.slow
def test_many_random_folders_end_in_a_value_or_a_sentence(tmp_path):
    all_end(range(1000, 1000 + IN_THE_SLOW_TIER), tmp_path)


@pytest.mark.parametrize(
    "seed", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_the_command_ends_like_the_library(seed, command, tmp_path):
    (tmp_path / "tree").mkdir()
    Tree(tmp_path / "tree", seed)
    classes = "[" + ",".join(f'"{name}"' for name in CLASSES) + "]"
    ended = command(
        "train", "task=rendered_sst2", "task.source=folder", f"task.path={tmp_path / 'tree'}", f"task.class_names={classes}",
        "doctor=true", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert "Traceback" not in ended.output
    assert (ended.code == 0) == ("Error: " not in ended.output)
