"""Datasets larger than the memory: streamed into the store, whole or not at all, and found again."""

import hashlib
import os
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from mergeability.data import image_cache
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.store import Store

SIZE, COUNT = 6, 1000


class Many:
    """Images of many sizes, which are made only when they are asked for."""

    def __init__(self, count: int = COUNT, fail_at: int | None = None) -> None:
        self.count, self.fail_at, self.made = count, fail_at, 0

    def identity(self, split):
        return {"many": self.count, "split": split}

    def labels(self, split):
        return np.arange(self.count) % 3

    def load(self, split):
        pytest.fail("a streamed split was asked for as a whole")

    def stream(self, split, work):
        for row in range(self.count):
            if row == self.fail_at:
                raise UserError("the disk of the dataset died")
            self.made += 1
            yield work(torch.full((3, SIZE + row % 3, SIZE + row % 4), row % 256, dtype=torch.uint8)), row % 3


def crop(images):
    return images[..., :SIZE, :SIZE]


def prepare(source, root, resize=crop, classes=3):
    task = Task("many", source, [f"class {label}" for label in range(classes)], ["a {}"], epochs=1)
    return image_cache.prepared(task, "train", resize, SIZE, Store(root))


def expected() -> np.ndarray:
    return np.broadcast_to(
        (np.arange(COUNT) % 256).astype(np.uint8)[:, None, None, None], (COUNT, 3, SIZE, SIZE)
    )


@pytest.mark.parametrize("on_disk", [True, False])
def test_all_images_come_resized_and_in_order(on_disk, tmp_path):
    found = prepare(Many(), tmp_path if on_disk else None)
    np.testing.assert_array_equal(found.images, expected())
    np.testing.assert_array_equal(found.labels, np.arange(COUNT) % 3)
    digest = hashlib.sha256(str((COUNT, 3, SIZE, SIZE)).encode() + expected().tobytes())
    digest.update((np.arange(COUNT) % 3).tobytes())
    assert found.fingerprint == digest.hexdigest()


def test_no_more_than_a_batch_is_in_memory(tmp_path, monkeypatch):
    source, seen = Many(), []
    write = image_cache.write_rows

    def watched(path, name, rows, others, metadata):
        def counted():
            for part in rows:
                seen.append(source.made)
                yield part

        write(path, name, counted(), others, metadata)

    monkeypatch.setattr(image_cache, "write_rows", watched)
    prepare(source, tmp_path)
    assert seen[-1] == COUNT
    assert max(after - before for before, after in pairwise([0, *seen])) <= 256


def test_a_later_run_asks_for_nothing(tmp_path):
    first, source = prepare(Many(), tmp_path), Many()
    again = prepare(source, tmp_path, resize=lambda _images: pytest.fail("resized again"))
    assert source.made == 0
    assert torch.equal(first.images, again.images)
    assert again.fingerprint == first.fingerprint


def test_a_run_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="died"):
        prepare(Many(fail_at=700), tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    np.testing.assert_array_equal(prepare(Many(), tmp_path).images, expected())


def test_images_are_hashed_in_pieces(tmp_path, monkeypatch):
    whole = prepare(Many(), tmp_path / "a").fingerprint
    monkeypatch.setattr(image_cache, "_READ", 1000)
    assert prepare(Many(), tmp_path / "b").fingerprint == whole


def test_labels_are_checked(tmp_path):
    for root in (None, tmp_path, tmp_path):
        with pytest.raises(UserError, match=r"expected labels in 0\.\.1"):
            prepare(Many(), root, classes=2)


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_empty_split(on_disk, tmp_path):
    with pytest.raises(UserError, match="train split is empty"):
        prepare(Many(count=0), tmp_path if on_disk else None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def identity(real, copy, *overrides):
    task = real.configured("cars", "task.source=disk", f"task.path={copy}", *overrides)
    return {split: task.source.identity(split) for split in ("train", "validation", "test")}


def test_the_identity_of_images_is_their_files_rows_and_decoding(real, tmp_path):
    copy = tmp_path / "copy"
    real.dataset("cars").save_to_disk(copy)
    first = identity(real, copy)
    assert identity(real, copy) == first
    assert first["train"] != first["validation"] != first["test"]
    for change in ("transpose=true", "max_corrupt=0.5"):
        other = identity(real, copy, f"task.dataset.{change}")
        assert all(other[split] != first[split] for split in first)
    other = identity(real, copy, "task.dataset.validation_seed=3")
    assert [other[split] == first[split] for split in ("train", "validation", "test")] == [False, False, True]
    # A name for a class is no pixel.
    assert identity(real, copy, "task.templates=['the {}']") == first
    for file in copy.rglob("*.arrow"):
        os.utime(file, (1, 1))
    assert identity(real, copy) != first


def test_a_class_folder_that_changes_its_class_is_another_identity(real, tmp_path):
    tree = tmp_path / "tree"
    real.write_tree(real.dataset("stl10"), real.schemas["stl10"], tree, lambda name: name)

    def found():
        task = real.configured("stl10", "task.source=folder", f"task.path={tree}")
        return task.source.identity("test")

    # The files, and their order, stay what they are.
    shutil.rmtree(tree / "test/deer", ignore_errors=True)
    first = found()
    (tree / "test/cat").rename(tree / "test/deer")
    assert found() != first
