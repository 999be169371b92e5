"""Provide the only interface to texts: all code reads a task's texts through this module."""

from mergeability.data.inputs import Split, Streamed, Texts, check_split
from mergeability.data.tasks import Task
from mergeability.errors import UserError


def read_texts(task: Task, split: Split) -> Texts:
    """Return the texts of one split of a task.

    Args:
        task: the task.
        split: the split.

    Raises:
        UserError: the task consists of images, the split is empty or unknown, or a label has no class name.

    Examples:
        >>> from mergeability.data import Task, TextCorpus
        >>> from mergeability.data.texts.reading import read_texts
        >>> classes = ["below zero", "zero to nine", "ten to nineteen", "twenty to twenty nine", "thirty or more"]
        >>> task = Task("sums", TextCorpus("sums", train=5, validation=5, test=5), classes, ["{}"], epochs=1)
        >>> len(read_texts(task, "test"))
        5
    """
    check_split(split)
    texts = None if isinstance(task.source, Streamed) else task.source.load(split)
    if not isinstance(texts, Texts):
        raise UserError(
            f"Task {task.name!r} consists of images, but texts are expected. Choose an image model, such as "
            "model=clip_mini or model=vit_b16."
        )
    return task.checked(texts, split)
