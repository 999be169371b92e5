"""Run the optimiser Adam on a batch of independent problems."""

import contextlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from mergeability.errors import UserError

Parameters = dict[str, np.ndarray]
"""Stacks of parameters by name: the first axis of each array indexes the runs."""

EPSILON = 1e-8
_DECAYS = (0.9, 0.999)


@contextlib.contextmanager
def refusing_overflow() -> Iterator[None]:
    """Raise an error if a number overflows single precision; infinite squared gradients would make every step zero.

    Raises:
        UserError: a number overflows.

    >>> with refusing_overflow():
    ...     np.float32([1e30]) ** 2
    Traceback (most recent call last):
    mergeability.errors.UserError: The fit of a predictor overflows single precision: choose a smaller penalty, \
weight_decay, learning_rate or initial_std.
    """
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError as error:
        raise UserError(
            "The fit of a predictor overflows single precision: choose a smaller penalty, weight_decay, learning_rate "
            "or initial_std."
        ) from error


class Adam:
    """Optimise a batch of independent problems by Adam with coupled weight decay; inactive problems skip the step.

    w ← w - rate · m̂ / (√v̂ + 1e-8), the gradient being that of the loss plus decay · w. Kingma and Ba, 2015.

    Args:
        parameters: parameters of all runs, in single precision.
        rate: the step size.
        decay: weight decay.

    >>> weights = {"w": np.ones((2, 1), dtype=np.float32)}
    >>> Adam(weights, 0.1).step(weights, {"w": np.ones((2, 1), np.float32)}, np.array([True, False]))
    >>> weights["w"].round(3).tolist()
    [[0.8999999761581421], [1.0]]
    """

    def __init__(self, parameters: Parameters, rate: float | int, decay: float | int = 0.0) -> None:
        self.rate, self.decay = rate, np.float32(decay)
        self.means = {name: np.zeros_like(part) for name, part in parameters.items()}
        self.squares = {name: np.zeros_like(part) for name, part in parameters.items()}
        self.steps = np.zeros(len(next(iter(parameters.values()))), dtype=int)

    def step(self, parameters: Parameters, gradients: Parameters, active: Bool[np.ndarray, " runs"]) -> None:
        """Update the parameters of the problems that `active` selects; the arrays are changed in place."""
        self.steps[active] += 1
        steps = np.maximum(self.steps, 1)
        corrections = [(1 - decay**steps).astype(np.float32) for decay in _DECAYS]
        for name, part in parameters.items():
            # Broadcast one number per run to the axes of this array.
            per_run = (-1, *[1] * (part.ndim - 1))
            moves = active.reshape(per_run)
            gradient = gradients[name] + self.decay * part
            moments = (self.means, gradient), (self.squares, gradient**2)
            for (kept, value), decay in zip(moments, _DECAYS, strict=True):
                kept[name] = np.where(moves, decay * kept[name] + (1 - decay) * value, kept[name])
            first, second = (correction.reshape(per_run) for correction in corrections)
            direction = self.means[name] / first / (np.sqrt(self.squares[name] / second) + EPSILON)
            part -= np.where(moves, self.rate * direction, 0).astype(part.dtype)
