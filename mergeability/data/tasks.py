"""Classification tasks: a source of images or texts, the class names and the prompt templates.

Images of a task are read through `image_cache`, which resizes them for a model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from mergeability.checks import Count, PathPart, Share, check_path_part, clean_name
from mergeability.data.inputs import SPLITS, Images, Source, Split, Streamed, Texts
from mergeability.errors import UserError

__all__ = ["SPLITS", "Images", "Source", "Split", "Task", "Texts"]

Samples = TypeVar("Samples", Images, Texts)


@dataclass(frozen=True)
class Task:
    """Describe a classification task: its images or texts, its classes, and the prompts of its zero-shot head.

    Attributes:
        name: name of the task, usable as a folder name.
        source: provides the images or texts of each split.
        class_names: names of the classes, in label order.
        templates: prompts with one `{}` for the class name.
        epochs: number of fine-tuning epochs, at least 1.
        expected_accuracy: test accuracy, in [0, 1], that a model fine-tuned without a penalty should reach; None if
            unknown.

    Raises:
        UserError: the source is invalid, there are fewer than two classes, a class name is repeated, a template does
            not contain `{}` once, `epochs` is below 1, or `expected_accuracy` outside [0, 1].

    Examples:
        >>> from mergeability.data import Rendered, Task
        >>> source = Rendered("mirrors", train=8, validation=4, test=4)
        >>> names = ["left to right", "top to bottom", "both ways", "nowhere"]
        >>> task = Task("mirrors", source, names, ["a mosaic mirrored {}"], epochs=2)
        >>> task.templates[0].format(task.class_names[2])
        'a mosaic mirrored both ways'
    """

    name: PathPart
    source: Source | Streamed
    class_names: Sequence[str]
    templates: Sequence[str]
    epochs: Count
    expected_accuracy: Share | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name, "the name of a task"))
        check_path_part("name of a task", self.name)
        what = f"each of the class names of task {self.name!r}"
        object.__setattr__(self, "class_names", [clean_name(name, what) for name in self.class_names])
        self._check_source()
        self._check_class_names()
        self._check_templates()
        if self.epochs < 1:
            raise UserError(f"Task {self.name!r}: expected at least 1 epoch, got {self.epochs}.")
        if self.expected_accuracy is not None and not 0 <= self.expected_accuracy <= 1:
            raise UserError(
                f"Task {self.name!r}: expected expected_accuracy to be a share in [0, 1], got "
                f"{self.expected_accuracy}. "
                "Divide percentages by 100."
            )

    def checked(self, samples: Samples, split: Split) -> Samples:
        """Check that images or texts fit this task, and return them.

        Raises:
            UserError: there are none, or a label has no class name.
        """
        self.check_labels(samples.labels, split)
        return samples

    def check_labels(self, labels: Tensor | np.ndarray, split: Split) -> None:
        """Check that a split is not empty and that every label has a class name.

        Raises:
            UserError: the split is empty, or a label has no class name.
        """
        if len(labels) == 0:
            raise self.empty(split)
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(self.class_names):
            raise UserError(
                f"Task {self.name!r}: expected labels in 0..{len(self.class_names) - 1}, because class_names lists "
                f"{len(self.class_names)} classes, but the {split} split has labels in {lowest}..{highest}. Check "
                "class_names and the label column."
            )

    def empty(self, split: Split) -> UserError:
        """Return the error raised when a split is empty."""
        return UserError(f"Task {self.name!r}: the {split} split is empty. Check task.source.")

    def _check_source(self) -> None:
        if not hasattr(self.source, "load") and not isinstance(self.source, Streamed):
            raise UserError(
                f"Task {self.name!r}: expected a source of images, got {self.source!r}. Remove task.source=… "
                "and task.path=…: only tasks of real images support these two options."
            )

    def _check_class_names(self) -> None:
        repeated = [name for name, count in Counter(self.class_names).items() if count > 1]
        if len(self.class_names) < 2 or repeated:
            raise UserError(
                f"Task {self.name!r}: expected at least 2 different class names, got {len(self.class_names)}"
                + (f" with repeated {repeated}." if repeated else ".")
            )

    def _check_templates(self) -> None:
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise UserError(
                f"Task {self.name!r}: expected templates that contain {{}} exactly once, as the placeholder of "
                f"the class name, got "
                f"{wrong or 'none'}."
            )
