"""Spherical linear interpolation of two models (Shoemake 1985, "Animating rotation with quaternion curves")."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked
from mergeability.merging.stream import stream
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

# Below this sine of the angle the two formulas agree to the last bit of float32, and one divides zero by zero.
_PARALLEL = 1e-6


@dataclass(frozen=True)
class Slerp:
    """Go from one model's weights to the other's along the arc between them, tensor by tensor.

    M = (sin((1−t)·Ω)·θ_a + sin(t·Ω)·θ_b) / sin Ω − θ_0, Ω the angle between the flattened θ_a and θ_b; a and b
    are the two models in the order of their names. Where there is no arc, that is where the two are parallel
    (or opposite) or one is zero, it is the straight line: M = (1−t)·τ_a + t·τ_b.

    Attributes:
        t: how far to go from a to b, in [0, 1].
        alpha: the default scale of M.
    """

    needs_data: ClassVar[bool] = False
    models: ClassVar[int | None] = 2

    t: float | int = 0.5
    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if isinstance(self.t, bool) or not 0 <= self.t <= 1:
            raise UserError(f"Expected t to be in [0, 1], got {self.t!r}.")

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name.

        Raises:
            UserError: there are more than two models.
        """
        task_vectors = checked(models)
        if len(task_vectors.tasks) != self.models:
            raise UserError(
                f"Slerp merges exactly {self.models} models, got {len(task_vectors.tasks)}: "
                "select two, or choose another method."
            )
        return stream(task_vectors, lambda name, stack: self._merge(task_vectors.base(name), stack))

    def _merge(
        self, base: Float[Tensor, "*shape"], stack: Float[Tensor, "2 *shape"]
    ) -> Float[Tensor, "*shape"]:
        origin = base.double()
        a, b = stack.double()
        first, second = self._weights(origin + a, origin + b)
        # The same as the formula above, without a difference of nearly equal numbers.
        return (first * a + second * b + (first + second - 1) * origin).float()

    def _weights(self, a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> tuple[float, float]:
        """Return what the two models' weights are multiplied by."""
        lengths = float(a.norm() * b.norm())
        cosine = float(a.flatten() @ b.flatten()) / lengths if lengths > 0 else 1.0
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) < _PARALLEL:
            return 1.0 - self.t, float(self.t)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)
