"""RegMean: least squares per linear layer (Jin et al. 2023, arXiv 2212.09849)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mergeability.errors import UserError
from mergeability.merging.method import check_alpha, checked, with_data
from mergeability.merging.stream import mean, stream
from mergeability.profiles.linear_inputs import LinearPart, ReadGram
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.parameters import Parameter
from mergeability.task_vectors.vectors import TaskVectors

# A smaller ridge would not make a singular matrix invertible at the precision of its entries.
_LEAST_RIDGE = 0.01


@dataclass(frozen=True)
class RegMean:
    """Merge each linear layer so that its outputs on the models' own inputs change least; average all other parameters.

    G_t is X_tᵀX_t with its off-diagonal entries multiplied
    by `scale`, and X_t the layer's inputs in model t on the calibration samples of task t. With scale 1, M minimises
    Σ ‖X_t (W − W_t)‖². Inputs that are zero in every model are averaged. If there are several solutions (scale 1
    and few samples), M is the one nearest to the average, in units of each input's length.

    Formula: M = (Σ G_t)⁻¹ Σ G_t τ_t, for weights stored inputs × outputs.

    Attributes:
        scale: factor of the off-diagonal entries of G_t, in [0, 1].
        alpha: default scale of M: a finite number, or "tuned" to choose it on validation images.

    Raises:
        UserError: `scale` is outside [0, 1], or `alpha` is neither a finite number nor "tuned".

    Paper: Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> from mergeability.merging import RegMean
        >>> merged = RegMean()(tiny_profiles())
        >>> {name: tuple(tensor.shape) for name, tensor in merged.items() if "weight" in name}
        {'visual.hidden.weight': (6, 12), 'visual.output.weight': (4, 6)}
    """

    needs_data: ClassVar[bool] = True
    models: ClassVar[int | None] = None

    scale: float | int = 0.9
    alpha: float | int | str = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if isinstance(self.scale, bool) or not 0 <= self.scale <= 1:
            raise UserError(f"Expected scale to be in [0, 1], got {self.scale!r}.")

    def __call__(self, models: TaskVectors | Profiles, /) -> dict[str, Tensor]:
        """Merge: return M in float32, by parameter name.

        Raises:
            UserError: samples or heads are missing, or a model's inputs are not finite.
        """
        profiles = with_data(models, "RegMean")
        task_vectors = checked(profiles)
        parts, grams = profiles.linear_inputs()

        def rule(name: str, stack: Tensor) -> Tensor:
            parameter = task_vectors.parameters[name]
            of_tensor = parts[parameter.tensor]
            return (
                self._merge(task_vectors, parameter, stack, of_tensor, grams)
                if of_tensor
                else mean(name, stack)
            )

        return stream(task_vectors, rule)

    def _merge(
        self,
        task_vectors: TaskVectors,
        parameter: Parameter,
        stack: Float[Tensor, "T *shape"],
        parts: list[LinearPart],
        grams: Mapping[str, ReadGram],
    ) -> Float[Tensor, "*shape"]:
        """Merge one parameter: RegMean for outputs with known inputs, the mean for the others."""
        average = stack.mean(0, dtype=torch.float64)
        merged = average.clone()
        for part in parts:
            outputs = _outputs(part, parameter)
            if outputs is None:
                continue
            # From here on as inputs × outputs, and as differences from the average, so that without information about
            # an input the solution is zero, which is the average.
            view, centre = (x.mT[:, outputs] if not part.inputs_first else x for x in (merged, average))
            weighted, total = (
                torch.zeros_like(centre),
                torch.zeros(part.width, part.width, dtype=torch.float64),
            )
            for task, delta in zip(task_vectors.tasks, stack, strict=True):
                gram = _shrunk(grams[task](part), self.scale)
                # One model's Gram matrix at a time, because together they are as large as several models.
                total += gram
                own = delta.double()
                weighted += gram @ ((own if part.inputs_first else own.mT[:, outputs]) - centre)
            view += _solved(total, weighted, ridge=1 - self.scale)
        return merged.float()


def _outputs(part: LinearPart, parameter: Parameter) -> slice | None:
    """Return the outputs of a parameter (a matrix or some of its rows) that a part covers; None if there are none."""
    if part.inputs_first:
        return slice(None)
    before = parameter.start // part.width
    first, last = max(part.first - before, 0), min(part.last - before, parameter.shape[0])
    return slice(first, last) if first < last else None


def _shrunk(gram: Float64[Tensor, "d d"], scale: float | int) -> Float64[Tensor, "d d"]:
    """Multiply the off-diagonal entries by `scale`."""
    shrunk = gram * scale
    # The paper scales only off-diagonal entries, which bounds the eigenvalues away from 0.
    shrunk.diagonal().copy_(gram.diagonal())
    return shrunk


def _solved(
    gram: Float64[Tensor, "d d"], right: Float64[Tensor, "d k"], *, ridge: float | int
) -> Float64[Tensor, "d k"]:
    """Solve G X = R; zero for inputs that are always zero, the minimum-norm solution if G is singular.

    G is rescaled to a unit diagonal, so that neither the units of inputs nor the number of samples matter: then
    the eigenvalues are at least `ridge`, and "least" is in units of each input's length.
    """
    diagonal = gram.diagonal()
    lengths = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()
    unit = gram * lengths[:, None] * lengths
    target = right * lengths[:, None]
    if ridge >= _LEAST_RIDGE:
        unit.diagonal()[diagonal <= 0] = 1
        found = torch.cholesky_solve(target, torch.linalg.cholesky(unit))
    else:
        values, vectors = torch.linalg.eigh(unit)
        # The size of rounding errors of zeros in float32.
        kept = values > len(gram) * torch.finfo(torch.float32).eps
        inverse = torch.where(kept, values, torch.inf).reciprocal()
        found = vectors @ (inverse[:, None] * (vectors.mT @ target))
    return found * lengths[:, None]
