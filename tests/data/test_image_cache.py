"""Images prepared once: the same pixels as the source's, from a mapped file, and never another task's."""

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mergeability.data.image_cache import prepared
from mergeability.data.rendered import source as rendered
from mergeability.data.rendered.source import Rendered
from mergeability.data.tasks import Images, Task
from mergeability.errors import UserError
from mergeability.store import Store

SIZE = 8
# More than pass at a time when images are resized.
COUNT = 300


def pixels(seed: int = 0, count: int = COUNT, side: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side + 1), dtype=np.uint8)


def crop(images: torch.Tensor) -> torch.Tensor:
    """Stand in for resizing: NumPy does the same in one expression."""
    return images[..., -SIZE:, -SIZE:]


@dataclass
class Drawn:
    """A source of a user's own, which counts how often it is asked."""

    seed: int = 0
    count: int = COUNT
    classes: int = 4
    asked: list[str] = field(default_factory=list)

    def load(self, split: str) -> Images:
        self.asked.append(split)
        labels = torch.arange(self.count) % self.classes
        return Images(torch.from_numpy(pixels(self.seed, self.count)), labels)


class Identified(Drawn):
    """One that can say what its images are without making them."""

    def identity(self, split: str) -> dict:
        return {"drawn": self.seed, "count": self.count, "classes": self.classes, "split": split}


def task(source, classes: int = 4) -> Task:
    return Task("fruit", source, [str(number) for number in range(classes)], ["a {}"], epochs=1)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


def prepare(source, root: Path | None, split="test", size=SIZE, resize=crop, classes=4) -> Images:
    # A store of its own each time, as another run has.
    return prepared(task(source, classes), split, resize, size, Store(root))


def no_resizing(_images):
    pytest.fail("images were resized again")


@pytest.mark.parametrize("source", [Drawn, Identified])
@pytest.mark.parametrize("on_disk", [True, False])
def test_prepared_images_are_the_sources_resized(source, on_disk, root):
    found = prepare(source(), root if on_disk else None)
    np.testing.assert_array_equal(found.images, pixels()[..., -SIZE:, -SIZE:])
    np.testing.assert_array_equal(found.labels, np.arange(COUNT) % 4)


def test_a_later_run_neither_asks_the_source_nor_resizes(root):
    first, source = prepare(Identified(), root), Identified()
    again = prepare(source, root, resize=no_resizing)
    assert source.asked == []
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert again.fingerprint == first.fingerprint


def test_a_source_that_cannot_say_what_its_images_are_is_found_by_its_content(root):
    prepare(Drawn(), root)
    source = Drawn()
    prepare(source, root, resize=no_resizing)
    assert source.asked == ["test"]
    other = prepare(Drawn(seed=1), root)
    np.testing.assert_array_equal(other.images, pixels(1)[..., -SIZE:, -SIZE:])


@pytest.mark.parametrize(
    "change", [{"split": "validation"}, {"size": SIZE - 1}, {"source": Identified(seed=1)}]
)
def test_another_split_size_or_source_is_prepared_anew(change, root):
    prepare(Identified(), root)
    size = change.get("size", SIZE)
    arguments = {"source": Identified(), **change}
    resized = []

    def resize(images):
        resized.append(images)
        return images[..., :size, :size]

    found = prepare(root=root, resize=resize, **arguments)
    assert sum(map(len, resized)) == COUNT
    expected = pixels(arguments["source"].seed)[..., :size, :size]
    np.testing.assert_array_equal(found.images, expected)


@pytest.mark.parametrize("library", ["torch", "torchvision"])
def test_another_version_of_what_resizes_is_prepared_anew(library, root, monkeypatch):
    from mergeability.data import image_cache

    prepare(Identified(), root)
    known = image_cache.version
    monkeypatch.setattr(image_cache, "version", lambda name: "0.0" if name == library else known(name))
    source = Identified()
    prepare(source, root)
    assert source.asked == ["test"]


def hashed(images: np.ndarray, labels: np.ndarray) -> str:
    return hashlib.sha256(str(images.shape).encode() + images.tobytes() + labels.tobytes()).hexdigest()


@pytest.mark.parametrize("source", [Drawn, Identified])
def test_the_fingerprint_is_the_contents_in_the_first_run_and_later(source, root):
    expected = hashed(pixels()[..., -SIZE:, -SIZE:], np.arange(COUNT, dtype=np.int64) % 4)
    assert [prepare(source(), where).fingerprint for where in (root, root, None)] == [expected] * 3
    for record in root.rglob("image_fingerprint/*/*.json"):
        record.unlink()
    assert prepare(source(), root).fingerprint == expected, "made again from the file"


def test_chosen_images_have_a_fingerprint_of_their_own(root):
    found = prepare(Identified(), root)[torch.tensor([3, 1])]
    expected = hashed(pixels()[[3, 1]][..., -SIZE:, -SIZE:], np.array([3, 1]))
    assert found.fingerprint == expected


def test_images_of_the_models_size_keep_the_fingerprint_they_have_always_had(root):
    """It is part of the key of every accuracy there is."""
    source = Rendered("shapes", 4, 4, 12)
    drawn = Task("shapes", source, [str(number) for number in range(8)], ["a {}"], epochs=1)
    for _ in range(2):
        found = prepared(drawn, "test", no_resizing, 32, Store(root))
        assert torch.equal(found.images, source.load("test").images)
        assert found.fingerprint == source.load("test").fingerprint


def test_only_what_is_looked_at_is_read(root):
    """Pages of the file, in bytes, that this process holds."""

    def resident(path: Path) -> int:
        parts = Path("/proc/self/smaps").read_text().split(str(path))
        assert len(parts) == 2, "mapped once"
        return 1024 * int(next(line for line in parts[1].splitlines() if line.startswith("Rss")).split()[1])

    source = Identified(count=160_000)
    prepare(source, root)
    found = prepare(source, root, resize=no_resizing)
    (path,) = root.rglob("images/*/*.safetensors")
    assert found.fingerprint
    assert resident(path) == 0
    # The system reads some pages around the one it is asked for.
    assert found.images[80_000].any()
    assert 0 < resident(path) <= path.stat().st_size // 4
    assert found.images.sum() > 0
    assert resident(path) > path.stat().st_size // 2


def test_nothing_written_to_prepared_images_reaches_the_store(root):
    prepare(Identified(), root)
    prepare(Identified(), root).images.zero_()
    assert prepare(Identified(), root).images.any()


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-1], lambda _whole: b"", lambda whole: b"\xff" + whole[1:]]
)
def test_a_damaged_file_is_made_again(damage, root, caplog):
    first = prepare(Identified(), root)
    expected = first.images.clone()
    (path,) = root.rglob("images/*/*.safetensors")
    content = path.read_bytes()
    # As a new file: what is mapped must not change below the one that holds it.
    path.unlink()
    path.write_bytes(damage(content))
    source = Identified()
    with caplog.at_level(logging.WARNING):
        found = prepare(source, root)
    assert "Damaged entry" in caplog.text
    assert source.asked == ["test"]
    assert torch.equal(found.images, expected)


def test_labels_are_checked_whether_images_are_made_or_found(root):
    for source in (Identified(), Identified(), Drawn()):
        prepare(source, root)
        with pytest.raises(
            UserError, match=r"'fruit': expected labels in 0\.\.2.*test split has labels in 0\.\.3"
        ):
            prepare(source, root, classes=3)
    with pytest.raises(UserError, match=r"expected labels in 0\.\.2"):
        prepare(Identified(seed=5), root, classes=3)
    with pytest.raises(UserError, match=r"expected labels in 0\.\.2"):
        prepare(Identified(), None, classes=3)


@pytest.mark.parametrize("source", [Drawn(count=0), Identified(count=0)])
@pytest.mark.parametrize("on_disk", [True, False])
def test_an_empty_split_is_an_error_and_nothing_is_filed(source, on_disk, root):
    for _ in range(2):
        with pytest.raises(UserError, match="test split is empty"):
            prepare(source, root if on_disk else None)
    assert not list(root.rglob("*.safetensors"))


def test_an_unknown_split_is_an_error(root):
    with pytest.raises(UserError, match="train, validation, test, got 'valid'"):
        prepare(Identified(), root, split="valid")


def test_the_identity_of_rendered_images_names_everything_that_determines_them():
    source = Rendered("shapes", 5, 6, 7, seed=1)
    identity = source.identity("test")
    assert json.loads(json.dumps(identity)) == identity
    assert Rendered("shapes", 5, 6, 7, seed=1).identity("test") == identity
    others = [replace(source, **change) for change in ({"subject": "digits"}, {"test": 8}, {"seed": 2})]
    assert all(other.identity("test") != identity for other in others)
    assert replace(source, test=6).identity("validation") != replace(source, test=6).identity("test")
    with pytest.raises(UserError, match="got 'valid'"):
        source.identity("valid")


@pytest.mark.parametrize("library", ["torch", "torchvision", "numpy", "pillow", "scikit-learn"])
def test_another_version_of_a_library_that_draws_is_another_identity(library, monkeypatch):
    source, known = Rendered("digits", 8, 8, 8), rendered.version
    now = source.identity("train")
    monkeypatch.setattr(rendered, "version", lambda name: "0.0" if name == library else known(name))
    assert source.identity("train") != now


def test_another_version_of_the_drawing_code_is_another_identity(monkeypatch):
    source = Rendered("digits", 8, 8, 8)
    now = source.identity("train")
    monkeypatch.setattr(rendered, "_VERSION", rendered._VERSION + 1)
    assert source.identity("train") != now
