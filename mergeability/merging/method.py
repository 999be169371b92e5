"""What a merge method is: its Protocol with declared traits, and the checks that all methods share."""

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
    """A frozen dataclass that turns task vectors into one merged task vector M, in float32, by parameter name.

    The options are its fields, so that a merge is filed in the store by class and options. Both traits are literals in
    the body of the class itself: command lines read them from its source, without importing it.

    Attributes:
        needs_data: whether it is called with `Profiles` that have views (calibration images, labels, heads), rather
            than with task vectors alone.
        models: the exact number of models it merges; None for any number from two.
        alpha: the default scale of M: a number, "tuned" or "published".
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
    """A method that changes the task vectors and leaves merging, and the scale, to the method `then`."""

    @property
    def then(self) -> MergeMethod | None: ...  # noqa: D102


@runtime_checkable
class HasPublishedAlpha(Protocol):
    """A method whose authors published scales by architecture and number of models."""

    def published_alpha(self, task_vectors: TaskVectors) -> tuple[float, bool]:
        """Return the published scale and True; 1 and False if no scale was published."""
        ...


def checked(models: TaskVectors | Profiles) -> TaskVectors:
    """Check that the models can be merged, and return their task vectors sorted by name.

    Sorted, because sums in floating point depend on the order of their terms, and a merge should not.

    Raises:
        UserError: fewer than two models, or one that does not come from this base.
    """
    task_vectors = models.task_vectors if isinstance(models, Profiles) else models
    if len(task_vectors.tasks) < 2:
        raise UserError(f"Expected at least two models to merge, got {len(task_vectors.tasks)}.")
    task_vectors.check_base()
    return task_vectors.select(sorted(task_vectors.tasks))


def with_data(models: TaskVectors | Profiles, method: str) -> Profiles:
    """Check that a method that needs images and heads has them, and return the evidence.

    Raises:
        UserError: there are bare task vectors, or evidence without views.
    """
    if isinstance(models, Profiles) and models.views is not None:
        return models
    given = "Profiles without views" if isinstance(models, Profiles) else "task vectors alone"
    raise UserError(
        f"{method} needs the models' calibration images, labels and heads (Profiles with Views), got {given}: "
        f"give them, or choose a method that needs no data: {', '.join(data_free())}."
    )


def check_alpha(alpha: object, *words: str) -> None:
    """Check a scale: a finite number, "tuned", or one of the other words.

    Raises:
        UserError: it is something else.
    """
    allowed = (TUNED, *words)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if not is_number and not (isinstance(alpha, str) and alpha in allowed):
        named = " or ".join(f"'{word}'" for word in allowed)
        raise UserError(f"Expected alpha to be a finite number or {named}, got {alpha!r}.")
