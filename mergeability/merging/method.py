"""The protocol of merge methods, with declared traits and shared checks."""

import math
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mergeability.errors import UserError
from mergeability.members import data_free
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

TUNED, PUBLISHED = "tuned", "published"


@runtime_checkable
class MergeMethod(Protocol):
    """Protocol of merge methods, which merge task vectors into one task vector M: a float32 tensor per parameter name.

    Options are fields, so that merges are stored under their class and options. Both traits are literals in
    the body of the class itself: command lines read them from its source, without importing it.

    Attributes:
        needs_data: whether it is called with `Profiles` that have views (calibration images, labels, heads), rather
            than with task vectors alone.
        models: the exact number of models it merges; None for any number from two.
        alpha: the default scale of M: a number, "tuned" or "published".

    Examples:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.method import MergeMethod
        >>> @dataclass(frozen=True)
        ... class Largest:
        ...     needs_data: ClassVar[bool] = False
        ...     models: ClassVar[int | None] = None
        ...     alpha: float = 1.0
        ...     def __call__(self, models, /):
        ...         return {name: models[name].amax(0) for name in models}
        >>> isinstance(Largest(), MergeMethod)
        True
        >>> Largest()(tiny_task_vectors(cars=[4, 1, 0], svhn=[2, -3, 5]))
        {'weight': tensor([4., 1., 5.])}
    """

    needs_data: ClassVar[bool]
    models: ClassVar[int | None]

    # Read-only, as in a frozen dataclass.
    @property
    def alpha(self) -> float | int | str: ...  # noqa: D102

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name."""
        ...


@runtime_checkable
class Preprocessing(Protocol):
    """Protocol of methods that transform the task vectors; the method in `then` merges the result and sets the scale.

    Examples:
        >>> from mergeability.merging import Dare, Ties
        >>> from mergeability.merging.method import Preprocessing
        >>> isinstance(Dare(), Preprocessing), isinstance(Ties(), Preprocessing)
        (True, False)
    """

    @property
    def then(self) -> MergeMethod | None: ...  # noqa: D102


@runtime_checkable
class HasPublishedAlpha(Protocol):
    """Protocol of methods with published scales, which depend on the architecture and the number of models.

    Examples:
        >>> from mergeability.merging import IsoC, Ties
        >>> from mergeability.merging.method import HasPublishedAlpha
        >>> isinstance(IsoC(), HasPublishedAlpha), isinstance(Ties(), HasPublishedAlpha)
        (True, False)
    """

    def published_alpha(self, task_vectors: TaskVectors) -> tuple[float, bool]:
        """Return the published scale and True, or 1 and False if no scale was published."""
        ...


def checked(models: TaskVectors | Profiles) -> TaskVectors:
    """Check that the models can be merged, and return their task vectors sorted by name.

    Tasks are sorted, because floating-point sums depend on the order of terms, but a merge should not.

    Args:
        models: task vectors, or profiles that hold them.

    Returns:
        The task vectors, with tasks sorted by name.

    Raises:
        UserError: there are fewer than two models, or one was not fine-tuned from this base.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging.method import checked
        >>> checked(tiny_task_vectors(svhn=[1, 0], cars=[0, 1])).tasks
        ('cars', 'svhn')
    """
    task_vectors = models.task_vectors if isinstance(models, Profiles) else models
    if len(task_vectors.tasks) < 2:
        raise UserError(f"Expected at least two models to merge, got {len(task_vectors.tasks)}.")
    task_vectors.check_base()
    return task_vectors.select(sorted(task_vectors.tasks))


def with_data(models: TaskVectors | Profiles, method: str) -> Profiles:
    """Check that the models come with the images and heads that a method needs, and return the profiles of the models.

    Args:
        models: the models.
        method: name of the method, for the message.

    Returns:
        The profiles.

    Raises:
        UserError: `models` are task vectors, or profiles without views.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.merging.method import with_data
        >>> with_data(tiny_profiles("cars", "svhn"), "RegMean").tasks
        ('cars', 'svhn')
    """
    if isinstance(models, Profiles) and models.views is not None:
        return models
    given = "Profiles without views" if isinstance(models, Profiles) else "task vectors alone"
    raise UserError(
        f"{method} requires the models' calibration images, labels and heads (a Profiles object with views), got "
        f"{given}. Provide them, or choose a method that needs no data: {', '.join(data_free())}."
    )


def check_alpha(alpha: object, *words: str) -> None:
    """Check that a scale is a finite number, "tuned", or another allowed word.

    Args:
        alpha: the scale.
        words: words that are allowed in addition to "tuned".

    Raises:
        UserError: the value is invalid.

    Examples:
        >>> from mergeability.merging.method import check_alpha
        >>> check_alpha(0.3)
        >>> check_alpha("tuned")
        >>> check_alpha("published", "published")
        >>> check_alpha("published")
        Traceback (most recent call last):
        mergeability.errors.UserError: Expected alpha to be a finite number or 'tuned', got 'published'.
    """
    allowed = (TUNED, *words)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_number and not (isinstance(alpha, str) and alpha in allowed):
        named = " or ".join(f"'{word}'" for word in allowed)
        raise UserError(f"Expected alpha to be a finite number or {named}, got {alpha!r}.")
