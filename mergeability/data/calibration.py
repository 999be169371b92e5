"""Calibration samples: the few held-out training images that data-dependent views and merges look at."""

import torch

from mergeability.data.inputs import Images
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.random import seeded_generator


def calibration_sample(
    task: Task, n: int = 10, seed: int = 42, *, held_out: Images, fewer: bool = False
) -> Images:
    """Draw n images without replacement from the task's validation split.

    Validation images are held out from training, and the test split stays untouched. The draw depends only on the
    task's name, the seed and the size of the split, never on the other tasks or their order.

    Args:
        task: what to draw from.
        n: how many images.
        seed: of the draw.
        held_out: the task's validation images, from `image_cache.prepared`.
        fewer: take all images where there are fewer than n.

    Raises:
        UserError: n is not between 1 and the size of the validation split.
    """
    if fewer and n > len(held_out):
        return held_out
    if not 1 <= n <= len(held_out):
        raise UserError(
            f"Task {task.name!r}: expected 1 to {len(held_out)} calibration images, the size of its validation "
            f"split, got {n}."
        )
    order = torch.randperm(len(held_out), generator=seeded_generator("calibration", task.name, seed))
    return held_out[order[:n]]
