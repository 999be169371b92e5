"""The one door to images: nothing but `image_cache` asks a source for them, whatever their sizes are."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import mergeability
from mergeability.data.image_cache import originals, prepared
from mergeability.data.tasks import Images, Task
from mergeability.errors import UserError
from mergeability.store import Store

PACKAGE = Path(mergeability.__file__).parent
# How a source hands over images. `labels` says how many there are, and `identity` which.
ASKING = {"load", "stream", "decoded", "split"}
# The door, and the sources behind it.
BEHIND = ("data/image_cache.py", "data/real/", "data/rendered/", "data/texts/")


def asked(code: str) -> list[str]:
    """Find calls that ask a task or its source for images."""
    found = []
    if not any(f".{name}(" in code for name in ASKING):
        return found  # Parsing every module takes seconds.
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = ast.unparse(node.func.value)
        is_source = owner.rpartition(".")[2] in ("source", "task", "Rendered")
        if node.func.attr in ASKING and is_source:
            found.append(ast.unparse(node.func))
    return found


def test_nothing_else_asks_a_source_for_images():
    others = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(others) > 100
    calls = {path: asked(code) for path, code in others.items() if not path.startswith(BEHIND)}
    assert {path: found for path, found in calls.items() if found} == {}
    assert asked((PACKAGE / "data/image_cache.py").read_text()), (
        "and what is looked for is what the door does"
    )
    assert asked("images = task.split('test')\nsuite.tasks[name].source.load(split)") == [
        "task.split",
        "suite.tasks[name].source.load",
    ]


def test_a_task_hands_out_no_images_itself():
    assert not hasattr(Task, "split")
    assert not hasattr(Task, "load")


class OfManySizes:
    """A source of a user's own whose images all differ in size: nothing but a stream."""

    labels_given = (0, 1, 1, 0, 1)

    def identity(self, split):
        return {"of_many_sizes": split}

    def labels(self, split):
        return np.array(self.labels_given, dtype=np.int64)

    def stream(self, split, work):
        for row, label in enumerate(self.labels_given):
            yield work(torch.full((3, 4 + row, 9 - row), row, dtype=torch.uint8)), label


def task(source) -> Task:
    return Task("sizes", source, ["a", "b"], ["a {}"], epochs=1)


def corner(images: torch.Tensor) -> torch.Tensor:
    return images[..., :4, :4]


@pytest.mark.parametrize("on_disk", [True, False])
def test_images_of_many_sizes_come_out_in_one(on_disk, tmp_path):
    for _ in range(2):
        found = prepared(task(OfManySizes()), "test", corner, 4, Store(tmp_path if on_disk else None))
        assert found.images.shape == (5, 3, 4, 4)
        assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        assert found.labels.tolist() == [0, 1, 1, 0, 1]


class Fixed:
    def load(self, split):
        pixels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
        return Images(pixels, torch.tensor([0, 1, 1, 0]))


@pytest.mark.parametrize(("source", "count"), [(OfManySizes(), 5), (Fixed(), 4)])
def test_originals_are_shown_as_they_are_stored(source, count):
    images = originals(task(source), "train")
    looked = list(images.each(lambda pixels: tuple(pixels.shape)))
    assert len(images.labels) == len(looked) == count
    assert [one.label for one in looked] == images.labels.tolist()
    if count == 5:
        assert [one.value for one in looked] == [(3, 4 + row, 9 - row) for row in range(5)]
    chosen = list(images.each(lambda pixels: int(pixels[0, 0, 0]), [1, 3]))
    assert [one.value for one in chosen] == ([1, 3] if count == 5 else [12, 36])
    assert [one.name for one in chosen] == ["train image 1", "train image 3"]


def test_originals_are_checked_as_prepared_images_are():
    class Wrong(OfManySizes):
        labels_given = (0, 2)

    class Empty(OfManySizes):
        labels_given = ()

    with pytest.raises(UserError, match=r"expected labels in 0\.\.1"):
        originals(task(Wrong()), "test")
    with pytest.raises(UserError, match="test split is empty"):
        originals(task(Empty()), "test")
    with pytest.raises(UserError, match="got 'valid'"):
        originals(task(Fixed()), "valid")
