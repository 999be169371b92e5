"""Fisher-weighted averaging (Matena & Raffel 2022, arXiv 2111.09832)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mergeability.merging.method import check_alpha, checked, with_data
from mergeability.merging.stream import mean, stream
from mergeability.profiles.fisher import Read
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.parameters import Parameter
from mergeability.task_vectors.vectors import TaskVectors


@dataclass(frozen=True)
class Fisher:
    """Average each parameter entry over the models, with their diagonal Fisher information as weights.

    F_t is the squared gradient of the cross-entropy at the true label, averaged over the calibration samples of task t.
    Entries with Σ F_t = 0, and tensors that are not parameters of the encoder, are averaged without weights.

    Formula: M = Σ F_t τ_t / Σ F_t.

    Attributes:
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `alpha` is neither a finite number nor "tuned".

    Paper: Matena & Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.merging import Fisher
        >>> merged = Fisher()(tiny_profiles())
        >>> {name: tuple(tensor.shape) for name, tensor in merged.items() if "weight" in name}
        {'visual.hidden.weight': (6, 12), 'visual.output.weight': (4, 6)}
    """

    needs_data: ClassVar[bool] = True
    models: ClassVar[int | None] = None

    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name.

        Raises:
            UserError: inputs or heads are missing, or a model's Fisher information is not finite.
        """
        profiles = with_data(models, "Fisher-weighted averaging")
        task_vectors = checked(profiles)
        known, information = profiles.encoder_parameters, profiles.fisher()

        def rule(name: str, stack: Tensor) -> Tensor:
            parameter = task_vectors.parameters[name]
            if parameter.tensor not in known:
                return mean(name, stack)
            return _weighted(stack, parameter, {task: information[task] for task in task_vectors.tasks})

        return stream(task_vectors, rule)


def _weighted(
    stack: Float[Tensor, "T *shape"], parameter: Parameter, information: Mapping[str, Read]
) -> Float[Tensor, "*shape"]:
    """Average with the weights of one parameter, read one model at a time; in float64, where none underflows."""
    weighted = torch.zeros(stack.shape[1:], dtype=torch.float64)
    total = torch.zeros_like(weighted)
    for delta, read in zip(stack, information.values(), strict=True):
        values = read(parameter.tensor, parameter.start, parameter.start + parameter.size)
        weights = torch.from_numpy(values).reshape(parameter.shape)
        weighted.addcmul_(weights, delta.double())
        total += weights
    known = total > 0
    return torch.where(known, (weighted / torch.where(known, total, 1)).float(), stack.mean(0))
