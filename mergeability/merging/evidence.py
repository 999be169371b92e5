"""What the merge methods that need data share: the check that the data is there."""

from mergeability.errors import UserError
from mergeability.merging.method import DATA_FREE
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors


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
        f"give them, or choose a method that needs no data: {', '.join(DATA_FREE)}."
    )
