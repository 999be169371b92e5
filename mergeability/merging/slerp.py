"""Spherical linear interpolation of two models (Shoemake 1985, "Animating rotation with quaternion curves")."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import ByParameter, Streamed, streamed
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

# For a smaller sine of the angle, both formulas agree to the last bit of float32, and slerp would divide by zero.
_PARALLEL = 1e-6


@dataclass(frozen=True)
class Slerp(ByParameter):
    """Interpolate between the weights of two models along a great-circle arc, tensor by tensor.

    Ω is the angle between the flattened θ_a and θ_b, and a
    and b are the two models sorted by name. If the two are parallel or opposite, or one is zero, the interpolation is
    linear: M = (1−t)·τ_a + t·τ_b.

    Formula: M = (sin((1−t)·Ω)·θ_a + sin(t·Ω)·θ_b) / sin Ω − θ_0.

    Attributes:
        t: position between a (0) and b (1), in [0, 1].
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `t` is outside [0, 1], or `alpha` is neither a finite number nor "tuned".

    Paper: Shoemake 1985, Animating rotation with quaternion curves.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.merging import Slerp
        >>> models = tiny_task_vectors(cars=[4, 1, 2], svhn=[2, -3, 6])
        >>> Slerp(t=0.25)(models)["weight"].round(decimals=1)  # almost linear, since both models are near the base
        tensor([3.5000, 0.0000, 3.0000])
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = 2

    t: float | int = 0.5
    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if isinstance(self.t, bool) or not 0 <= self.t <= 1:
            raise UserError(f"Expected t to be in [0, 1], got {self.t!r}.")

    def streamed(self, models: TaskVectors | Profiles, /) -> Streamed:
        """Return M as a mapping whose float32 tensors are computed on access.

        Raises:
            UserError: there are more than two models.
        """
        task_vectors = checked(models)
        if len(task_vectors.tasks) != self.models:
            raise UserError(
                f"Slerp merges exactly {self.models} models, got {len(task_vectors.tasks)}: "
                "select two, or choose another method."
            )
        return streamed(task_vectors, lambda name, stack: self._merge(task_vectors.base(name), stack))

    def _merge(
        self, base: Float[Tensor, "*shape"], stack: Float[Tensor, "2 *shape"]
    ) -> Float[Tensor, "*shape"]:
        origin = base.double()
        a, b = stack.double()
        first, second = self._weights(origin + a, origin + b)
        # Equivalent to the formula above, but without cancellation.
        return (first * a + second * b + (first + second - 1) * origin).float()

    def _weights(self, a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> tuple[float, float]:
        """Return what the two models' weights are multiplied by."""
        lengths = float(a.norm() * b.norm())
        cosine = float(a.flatten() @ b.flatten()) / lengths if lengths > 0 else 1.0
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) < _PARALLEL:
            return 1.0 - self.t, float(self.t)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)
