"""Draw calibration samples: a few held-out images for metrics and merge methods that require data."""

import torch

from mergeability.data.inputs import Images
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.random import seeded_generator


def calibration_sample(
    task: Task, n: int = 10, seed: int = 42, *, held_out: Images, fewer: bool = False
) -> Images:
    """Draw n images without replacement from the task's validation split.

    Validation images are held out from training, and test images are not used. The draw depends only on the task's
    name, the seed and the size of the split, not on other tasks or their order.

    Args:
        task: the task that the images belong to.
        n: number of images, at least 1.
        seed: seed of the draw.
        held_out: the task's validation images, from `image_cache.prepared`.
        fewer: return all images if there are fewer than n, instead of an error.

    Returns:
        The drawn images with their labels.

    Raises:
        UserError: n is not between 1 and the size of the validation split.

    Examples:
        >>> from mergeability.data import calibration_sample
        >>> from mergeability.examples import tiny_task
        >>> task = tiny_task()
        >>> len(calibration_sample(task, 3, held_out=task.source.load("validation")))
        3
    """
    if fewer and n > len(held_out):
        return held_out
    if not 1 <= n <= len(held_out):
        raise UserError(
            f"Task {task.name!r}: expected at least 1 and at most {len(held_out)} calibration images, the"
            f" size of its validation split, got {n}."
        )
    order = torch.randperm(len(held_out), generator=seeded_generator("calibration", task.name, seed))
    return held_out[order[:n]]
