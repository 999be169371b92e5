"""Tasks and labelled images: what they accept, what they refuse and what identifies their content."""

import hashlib
from dataclasses import dataclass, replace

import pytest
import torch

from mergeability.data.image_cache import prepared
from mergeability.data.tasks import Images, Task
from mergeability.errors import UserError
from mergeability.store import Store


@dataclass(frozen=True)
class FixedSource:
    """A source that always returns the same images."""

    images: Images

    def load(self, split: str) -> Images:
        return self.images


def four_images(labels: list[int]) -> Images:
    return Images(torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2), torch.tensor(labels))


def task(labels: list[int]) -> Task:
    return Task("fruit", FixedSource(four_images(labels)), ["apple", "pear"], ["a {}"], epochs=1)


def load(task: Task, split: str = "test") -> Images:
    return prepared(task, split, lambda images: images, 2, Store())


def test_a_tasks_images_are_its_sources():
    images = load(task([0, 1, 1, 0]))
    assert len(images) == 4
    assert images.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [0, -1, 1, 0]])
def test_a_label_without_a_class_name_is_an_error_that_names_the_range(labels):
    with pytest.raises(UserError, match=r"expected labels in 0\.\.1.*labels in"):
        load(task(labels), "train")


def test_an_unknown_split_is_an_error_that_lists_the_splits():
    with pytest.raises(UserError, match="train, validation, test, got 'valid'"):
        load(task([0, 1, 1, 0]), "valid")


def test_an_empty_split_is_an_error():
    empty = Images(torch.zeros(0, 3, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="test split is empty"):
        load(replace(task([0, 1, 1, 0]), source=FixedSource(empty)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["apple"]}, "at least 2 different class names"),
        ({"class_names": ["apple", "pear", "apple"]}, "repeated"),
        ({"templates": []}, "got none"),
        ({"templates": ["a {}", "a fruit"]}, "a fruit"),
        ({"epochs": 0}, "at least 1 epoch"),
        ({"expected_accuracy": 97.0}, "Divide percentages by 100"),
    ],
)
def test_a_task_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(task([0, 1, 1, 0]), **changes)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images, labels):
    with pytest.raises(UserError, match="Expected"):
        Images(images, labels)


def test_the_fingerprint_is_the_hash_of_shape_pixels_and_labels():
    images = four_images([0, 1, 1, 0])
    content = b"(4, 3, 2, 2)" + bytes(range(48)) + b"".join(v.to_bytes(8, "little") for v in [0, 1, 1, 0])
    assert images.fingerprint == hashlib.sha256(content).hexdigest()


def test_the_fingerprint_tells_content_apart_and_ignores_memory_layout():
    images = four_images([0, 1, 1, 0])
    strided = Images(images.images.transpose(2, 3).contiguous().transpose(2, 3), images.labels)
    assert strided.fingerprint == images.fingerprint
    assert four_images([0, 1, 1, 1]).fingerprint != images.fingerprint
    assert Images(images.images + 1, images.labels).fingerprint != images.fingerprint
    assert Images(images.images.view(4, 3, 1, 4), images.labels).fingerprint != images.fingerprint


def test_images_are_chosen_by_index_in_that_order():
    chosen = four_images([0, 1, 1, 0])[torch.tensor([3, 1])]
    assert chosen.labels.tolist() == [0, 1]
    assert chosen.images[0, 0, 0, 0] == 36
