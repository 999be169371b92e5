"""Adam, for stacks of independent runs."""

import numpy as np
from jaxtyping import Bool

Parameters = dict[str, np.ndarray]
"""Stacks of parameters by name: the first axis of each array is that of the runs."""

EPSILON = 1e-8
_DECAYS = (0.9, 0.999)


class Adam:
    """Adam with coupled weight decay, for stacks of independent runs, each of which may skip a step.

    w ← w - rate · m̂ / (√v̂ + 1e-8), the gradient being that of the loss plus decay · w. Kingma and Ba, 2015.

    Args:
        parameters: of all runs, in single precision.
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
        """Move the parameters of the active runs, in place."""
        self.steps[active] += 1
        steps = np.maximum(self.steps, 1)
        rate = (self.rate * active / (1 - _DECAYS[0] ** steps)).astype(np.float32)
        correction = (1 / np.sqrt(1 - _DECAYS[1] ** steps)).astype(np.float32)
        for name, part in parameters.items():
            # One number per run, along the axes of this array.
            per_run = (-1, *[1] * (part.ndim - 1))
            moves = active.reshape(per_run)
            gradient = gradients[name] + self.decay * part
            for moment, decay, value in (
                (self.means[name], _DECAYS[0], gradient),
                (self.squares[name], _DECAYS[1], gradient * gradient),
            ):
                moment += np.where(moves, np.float32(1 - decay) * (value - moment), 0)
            spread = np.sqrt(self.squares[name]) * correction.reshape(per_run) + np.float32(EPSILON)
            part -= rate.reshape(per_run) * self.means[name] / spread
