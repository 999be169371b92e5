"""Draw calibration samples: a few held-out samples for metrics and merge methods that require data."""

from typing import TypeVar

import torch

from mergeability.data.inputs import Samples
from mergeability.data.tasks import Task
from mergeability.errors import UserError
from mergeability.random import seeded_generator

S = TypeVar("S", bound=Samples)


def calibration_sample(task: Task, n: int = 10, seed: int = 42, *, held_out: S, fewer: bool = False) -> S:
    """Draw n samples without replacement from the task's validation split.

    The validation split is held out from training, and the test split is not used. The draw depends only on the task's
    name, the seed and the size of the split, not on other tasks or their order.

    Args:
        task: the task that the samples belong to.
        n: number of samples, at least 1.
        seed: seed of the draw.
        held_out: the task's validation split, from `samples` of a model.
        fewer: return all samples if there are fewer than n, instead of an error.

    Returns:
        The drawn samples with their labels.

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
            f"Task {task.name!r}: expected at least 1 and at most {len(held_out)} calibration samples"
            f" (the size of its validation split), got {n}."
        )
    order = torch.randperm(len(held_out), generator=seeded_generator("calibration", task.name, seed))
    return held_out[order[:n]]
