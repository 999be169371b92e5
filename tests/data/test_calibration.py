"""Calibration samples: held out, reproducible, and one task's draw independent of the other tasks."""

import pytest
import torch

from mergeability.data.calibration import calibration_sample
from mergeability.data.image_cache import prepared
from mergeability.data.rendered.source import Rendered
from mergeability.data.tasks import Images, Task
from mergeability.errors import UserError
from mergeability.store import Store


def task(name: str) -> Task:
    names = [str(label) for label in range(8)]
    return Task(name, Rendered("shapes", 16, 24, 16), names, ["a {}"], epochs=1)


@pytest.fixture(scope="module")
def held_out() -> Images:
    return prepared(task("a"), "validation", lambda images: images, 32, Store())


def keys(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_the_sample_is_n_different_images_of_the_validation_split_with_their_labels(held_out):
    label_of = dict(zip(keys(held_out.images), held_out.labels.tolist(), strict=True))
    sample = calibration_sample(task("a"), n=10, seed=42, held_out=held_out)
    assert len(set(keys(sample.images))) == 10
    assert [label_of[key] for key in keys(sample.images)] == sample.labels.tolist()


def test_the_sample_depends_on_the_task_and_the_seed(held_out):
    first = calibration_sample(task("a"), n=10, seed=42, held_out=held_out).fingerprint
    assert calibration_sample(task("a"), n=10, seed=42, held_out=held_out).fingerprint == first
    assert calibration_sample(task("a"), n=10, seed=43, held_out=held_out).fingerprint != first
    assert calibration_sample(task("b"), n=10, seed=42, held_out=held_out).fingerprint != first


def test_global_random_state_neither_matters_nor_moves(held_out):
    before = torch.random.get_rng_state()
    first = calibration_sample(task("a"), held_out=held_out).fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert calibration_sample(task("a"), held_out=held_out).fingerprint == first


@pytest.mark.parametrize("n", [0, 25])
def test_more_images_than_are_held_out_or_none_are_refused(n, held_out):
    with pytest.raises(UserError, match=r"at least 1 and at most 24 calibration samples.*got"):
        calibration_sample(task("a"), n=n, held_out=held_out)
