"""A task of somebody's own images: from a folder or a copy without an id on the Hub, which only `source=hub` needs."""

import numpy as np
import pytest
import torch
from PIL import Image

from mergeability.data.doctor import examine
from mergeability.data.image_cache import prepared
from mergeability.data.real.layouts import Layout
from mergeability.data.real.source import image_task
from mergeability.errors import UserError
from mergeability.store import Store

SIZE = 8
CLASSES = ("cat", "dog")
# As somebody writes it who has never put the images on the Hub.
YAML = """
defaults: [base/images@_here_, _self_]
name: pets
class_names: [cat, dog]
templates: ["a photo of a {}."]
epochs: 1
"""


def crop(images: torch.Tensor) -> torch.Tensor:
    return images[..., :SIZE, :SIZE]


def write(folder, kind: str) -> dict[str, list[np.ndarray]]:
    """Write images of different sizes, and return those of each split in the order in which they are read."""
    generator, found = np.random.default_rng(0), {}
    for split, count in (("train", 20), ("test", 6)):
        shapes = [(9 + row % 3, 12 - row % 2, 3) for row in range(count)]
        found[split] = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
        if kind == "folder":
            for row, pixels in enumerate(found[split]):
                place = folder / split / CLASSES[row * 2 // count]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / f"{row:02}.png")
    if kind == "disk":
        datasets = pytest.importorskip("datasets")
        types = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        )
        columns = {
            split: {
                "image": [Image.fromarray(pixels) for pixels in images],
                "label": [row * 2 // len(images) for row in range(len(images))],
            }
            for split, images in found.items()
        }
        tables = {split: datasets.Dataset.from_dict(one, features=types) for split, one in columns.items()}
        datasets.DatasetDict(tables).save_to_disk(folder)
    return found


def check(task, images, tmp_path) -> None:
    test = prepared(task, "test", crop, SIZE, Store(tmp_path / "store"))
    np.testing.assert_array_equal(
        test.images.permute(0, 2, 3, 1), np.stack([one[:SIZE, :SIZE] for one in images["test"]])
    )
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert examine(task, tmp_path / "report").problems == []


@pytest.mark.parametrize("kind", ["folder", "disk"])
def test_a_copy_needs_no_id(kind, tmp_path):
    images = write(tmp_path / "pets", kind)
    task = image_task("pets", kind, str(tmp_path / "pets"), Layout(), CLASSES, ["a {}"], 1)
    check(task, images, tmp_path)


@pytest.fixture
def written_task(tmp_path):
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/pets.yaml").write_text(YAML)
    return f"hydra.searchpath=[file://{tmp_path / 'conf'}]"


@pytest.mark.parametrize("key", ["task.source", "paths.source"])
def test_a_task_written_without_an_id_reads_a_folder(key, real, written_task, tmp_path):
    images = write(tmp_path / "pets", "folder")
    path = "task.path" if key == "task.source" else "paths.data"
    task = real.configured("pets", written_task, f"{key}=folder", f"{path}={tmp_path / 'pets'}")
    check(task, images, tmp_path)


def test_the_hub_needs_one(real, written_task, tmp_path):
    sentence = r"'pets': task\.source=hub requires task\.dataset\.id=<.*task\.path=<.*task\.source=folder"
    with pytest.raises(Exception, match=sentence):
        real.configured("pets", written_task)
    assert (
        real.configured("pets", written_task, "task.dataset.id=somebody/pets").source.layout.id
        == "somebody/pets"
    )
    for nothing in (None, ""):
        with pytest.raises(UserError, match=sentence):
            image_task("pets", "hub", None, Layout(nothing), CLASSES, ["a {}"], 1)


@pytest.mark.parametrize("setting", [{"validation_share": 2}, {"max_corrupt": -1}, {"validation_most": 0}])
def test_messages_name_no_id_that_is_not_there(setting):
    with pytest.raises(UserError, match=r"^A dataset: expected ") as raised:
        Layout(**setting)
    assert "None" not in str(raised.value)
    with pytest.raises(UserError, match=r"^Dataset somebody/pets: expected "):
        Layout("somebody/pets", **setting)
