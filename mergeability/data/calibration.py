"""Calibration samples: the few held-out training images that data-dependent views and merges look at."""

from collections.abc import Iterable

import torch

from mergeability.data.canvas import seeded_generator
from mergeability.data.sources import Images
from mergeability.data.tasks import Task
from mergeability.errors import UserError


def calibration_sample(task: Task, n: int = 10, seed: int = 42) -> Images:
    """Draw n images without replacement from the task's validation split.

    Validation images are held out from training, and the test split stays untouched. The draw depends on the
    task's name and the seed alone: the tasks beside it, and the order they come in, change nothing.

    Raises:
        UserError: n is not between 1 and the size of the validation split.
    """
    held_out = task.split("validation")
    if not 1 <= n <= len(held_out):
        raise UserError(
            f"Task {task.name!r}: expected 1 to {len(held_out)} calibration images, the size of its validation "
            f"split, got {n}."
        )
    order = torch.randperm(len(held_out), generator=seeded_generator("calibration", task.name, seed))
    return held_out[order[:n]]


def calibration_pool(tasks: Iterable[Task], n: int = 10, seed: int = 42) -> Images:
    """Join n images of every task, in the order of the tasks' names; labels stay each task's own.

    Raises:
        UserError: no task, images of different sizes, or as `calibration_sample`.
    """
    samples = [calibration_sample(task, n, seed) for task in sorted(tasks, key=lambda task: task.name)]
    if not samples:
        raise UserError("Expected at least one task to draw calibration images from, got none.")
    sizes = {tuple(sample.images.shape[1:]) for sample in samples}
    if len(sizes) > 1:
        raise UserError(
            f"Expected calibration images of one size, got {sorted(sizes)}. Preprocess them first."
        )
    return Images(
        torch.cat([sample.images for sample in samples]), torch.cat([sample.labels for sample in samples])
    )
