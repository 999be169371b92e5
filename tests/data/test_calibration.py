"""Calibration samples: held out, reproducible, and one task's draw independent of the other tasks."""

import pytest
import torch

from mergeability.data.calibration import calibration_sample
from mergeability.data.rendered.source import Rendered
from mergeability.data.tasks import Task
from mergeability.errors import UserError


def task(name: str, subject: str = "shapes") -> Task:
    names = [str(label) for label in range(8)]
    return Task(name, Rendered(subject, 16, 24, 16), names, ["a {}"], epochs=1)


def keys(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_the_sample_is_n_different_images_of_the_validation_split_with_their_labels():
    held_out = task("a").split("validation")
    label_of = dict(zip(keys(held_out.images), held_out.labels.tolist(), strict=True))
    sample = calibration_sample(task("a"), n=10, seed=42)
    assert len(set(keys(sample.images))) == 10
    assert [label_of[key] for key in keys(sample.images)] == sample.labels.tolist()


def test_the_sample_depends_on_the_task_and_the_seed():
    first = calibration_sample(task("a"), n=10, seed=42).fingerprint
    assert calibration_sample(task("a"), n=10, seed=42).fingerprint == first
    assert calibration_sample(task("a"), n=10, seed=43).fingerprint != first
    assert calibration_sample(task("b"), n=10, seed=42).fingerprint != first


def test_global_random_state_neither_matters_nor_moves():
    before = torch.random.get_rng_state()
    first = calibration_sample(task("a")).fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert calibration_sample(task("a")).fingerprint == first


@pytest.mark.parametrize("n", [0, 25])
def test_more_images_than_are_held_out_or_none_are_refused(n):
    with pytest.raises(UserError, match=r"1 to 24 calibration images.*got"):
        calibration_sample(task("a"), n=n)
