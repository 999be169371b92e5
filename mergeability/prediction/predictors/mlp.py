"""Predict outcomes from metrics with a small neural network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from sklearn.base import BaseEstimator, RegressorMixin

from mergeability.checks import Count, NotNegative, Positive, Seed, Share
from mergeability.errors import UserError
from mergeability.prediction.predictors.adam import Adam, Parameters, refusing_overflow
from mergeability.prediction.predictors.arrays import Problem, Rows, Values, new_rows, training_arrays


class MLP(RegressorMixin, BaseEstimator):
    """Predict by a network with one hidden layer, b + v·relu(c + Wᵀx), trained by Adam with dropout.

    Weight decay is added to the gradient, as in `torch.optim.Adam`. Initial weights are uniform within ±1/√fan-in.
    There are no coefficients: use `sklearn.inspection.permutation_importance` to measure how much a fit relies on each
    metric.

    Source: arXiv 2601.22285.

    The paper does not state whether outcomes were standardised, nor the batch size. On its table
    (accuracy, r by leave-one-task-out, mean of five methods and three seeds; published .493), batches of 32 reach .597
    with standardised and .473 with raw outcomes, full batches .560 and .132. With raw outcomes, most epochs pass while
    the output climbs from 0 to the level of the outcomes, and seeds differ by .05 instead of .02. The defaults are
    therefore batches of 32 and outcomes standardised by the training rows; `standardise=False` is closest to the
    published value.

    Args:
        hidden: number of hidden units.
        dropout: share of hidden units set to 0 in training, in [0, 1).
        learning_rate: step size of Adam.
        weight_decay: multiple of the weights added to the gradient.
        epochs: passes over the training rows.
        batch_size: rows per step.
        standardise: whether to standardise outcomes by the training rows.
        seed: seed of the initial weights, the order of the rows and dropout.

    Attributes:
        parameters_: `into` (m, h), `into_bias` (1, h), `out` (h, 1) and `out_bias` (1, 1), in single precision.
        level_: subtracted from outcomes before the fit, in outcome units.
        unit_: divisor of outcomes before the fit, in outcome units.

    Examples:
        >>> import numpy as np
        >>> from mergeability.prediction import MLP
        >>> X = np.linspace(-1, 1, 16)[:, None]
        >>> model = MLP(hidden=4, dropout=0.0, learning_rate=0.02, epochs=100).fit(X, 0.8 + 0.1 * X[:, 0])
        >>> model.parameters_["into"].shape
        (1, 4)
        >>> bool(np.abs(model.predict([[-0.5], [0.5]]) - [0.75, 0.85]).max() < 0.03)
        True
    """

    inputs: ClassVar[str] = "metrics"

    def __init__(
        self,
        hidden: Count = 8,
        dropout: Share = 0.4,
        learning_rate: Positive = 1e-3,
        weight_decay: NotNegative = 1e-3,
        epochs: Count = 300,
        batch_size: Count = 32,
        standardise: bool = True,
        seed: Seed = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.standardise = standardise
        self.seed = seed

    def fit(self, X: Rows, y: Values) -> "MLP":
        """Train one network on the training rows.

        Args:
            X: metrics, (n, m).
            y: n outcomes.

        Returns:
            The fitted predictor.

        Raises:
            UserError: a count is below 1, or dropout is outside [0, 1).
        """
        X, y = training_arrays(self, X, y)
        fitted = self.fit_many([(X, y, None)])[0]
        self.n_features_in_, self.parameters_ = X.shape[1], fitted.parameters_
        self.level_, self.unit_ = fitted.level_, fitted.unit_
        return self

    @refusing_overflow()
    def fit_many(self, problems: Sequence[Problem], seeds: Sequence[int] | None = None) -> list["MLP"]:
        """Fit one network per problem, all of them as a single batched optimisation.

        The result for a problem does not depend on the other problems.

        Args:
            problems: X, y and an unused third entry for each fit.
            seeds: one per problem; `seed` for all when None.

        Returns:
            One fitted predictor per problem.

        Raises:
            UserError: a count is below 1, dropout is outside [0, 1), or a number overflows.
        """
        self._check_settings()
        seeds = [self.seed] * len(problems) if seeds is None else seeds
        generators = [np.random.default_rng(seed) for seed in seeds]
        scales = [(y.mean(), y.std() or 1.0) if self.standardise else (0.0, 1.0) for _, y, _ in problems]
        rows = [
            (X.astype(np.float32), ((y - level) / unit).astype(np.float32))
            for (X, y, _), (level, unit) in zip(problems, scales, strict=True)
        ]
        parameters = self._train(rows, generators)
        return [
            self._fitted(problem, scale, {name: stack[run] for name, stack in parameters.items()})
            for run, (problem, scale) in enumerate(zip(problems, scales, strict=True))
        ]

    @refusing_overflow()
    def predict(self, X: Rows) -> Float[np.ndarray, " n"]:
        """Return the output of the network without dropout, in units of the outcome."""
        return self._evaluate(new_rows(self, X))

    def _check_settings(self) -> None:
        counts = (self.hidden, self.epochs, self.batch_size)
        if min(counts) < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "MLP requires hidden, epochs and batch_size >= 1 and 0 <= dropout < 1, got"
                f" hidden={self.hidden}, epochs={self.epochs}, batch_size={self.batch_size} and"
                f" dropout={self.dropout}."
            )

    def _evaluate(self, X: np.ndarray) -> np.ndarray:
        score, _ = forward({name: part[None] for name, part in self.parameters_.items()}, X[None])
        return score[0].astype(np.float64) * self.unit_ + self.level_

    def _fitted(self, problem: Problem, scale: tuple[Any, Any], parameters: Parameters) -> "MLP":
        fitted = type(self)(**self.get_params())
        fitted.n_features_in_, fitted.parameters_ = problem[0].shape[1], parameters
        fitted.level_, fitted.unit_ = map(float, scale)
        return fitted

    def _start(self, count: int, generator: np.random.Generator) -> Parameters:
        fans = {"into": count, "into_bias": count, "out": self.hidden, "out_bias": self.hidden}
        shapes = {
            "into": (count, self.hidden),
            "into_bias": (1, self.hidden),
            "out": (self.hidden, 1),
            "out_bias": (1, 1),
        }
        return {
            name: (generator.uniform(-1, 1, shape) / np.sqrt(fans[name])).astype(np.float32)
            for name, shape in shapes.items()
        }

    def _train(
        self, problems: Sequence[tuple[np.ndarray, np.ndarray]], generators: Sequence[np.random.Generator]
    ) -> Parameters:
        """Return the weights of all runs.

        These are `into` (runs, m, h), `into_bias` (runs, 1, h), `out` (runs, h, 1) and `out_bias` (runs, 1, 1).
        """
        starts = [
            self._start(X.shape[1], generator) for (X, _), generator in zip(problems, generators, strict=True)
        ]
        parameters = {name: np.stack([start[name] for start in starts]) for name in starts[0]}
        adam = Adam(parameters, self.learning_rate, self.weight_decay)
        X, y = (_padded([problem[side] for problem in problems]) for side in (0, 1))
        counts = np.array([len(outcome) for _, outcome in problems])
        runs = np.arange(len(problems))[:, None]
        for _ in range(self.epochs):
            order, masks = self._epoch(counts, generators)
            for first in range(0, counts.max(), self.batch_size):
                batch = slice(first, first + self.batch_size)
                chosen = order[:, batch]
                present: Any = chosen >= 0
                gradients = backward(
                    parameters,
                    X[runs, chosen],
                    np.where(present, y[runs, chosen], np.float32(0)),
                    present,
                    None if masks is None else masks[:, batch],
                )
                adam.step(parameters, gradients, present.any(axis=1))
        return parameters

    def _epoch(
        self, counts: Int[np.ndarray, " runs"], generators: Sequence[np.random.Generator]
    ) -> tuple[Int[np.ndarray, "runs n"], Float32[np.ndarray, "runs n hidden"] | None]:
        """Draw each run's order of its rows (then -1) and its dropout factors, from its own generator."""
        order = np.full((len(counts), counts.max()), -1)
        masks = np.zeros((*order.shape, self.hidden), dtype=np.float32) if self.dropout else None
        for run, (n, generator) in enumerate(zip(counts, generators, strict=True)):
            order[run, :n] = generator.permutation(n)
            if masks is not None:
                drawn = generator.random((n, self.hidden), dtype=np.float32)
                masks[run, :n] = (drawn >= self.dropout) / np.float32(1 - self.dropout)
        return order, masks


def forward(
    parameters: Parameters, X: np.ndarray, masks: np.ndarray | None = None
) -> tuple[Float[np.ndarray, "runs n"], Float[np.ndarray, "runs n hidden"]]:
    """Return each network's outputs, and its hidden units after ReLU and dropout."""
    hidden = np.maximum(X @ parameters["into"] + parameters["into_bias"], 0)
    hidden = hidden if masks is None else hidden * masks
    return (hidden @ parameters["out"] + parameters["out_bias"])[:, :, 0], hidden


def backward(
    parameters: Parameters,
    X: np.ndarray,
    y: np.ndarray,
    present: Bool[np.ndarray, "runs n"],
    masks: np.ndarray | None = None,
) -> Parameters:
    """Return the gradient of each network's mean squared error over the rows in its mask."""
    score, hidden = forward(parameters, X, masks)
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    slope = (2 * (score - y) * present / count).astype(X.dtype)[:, :, None]
    inner = slope * np.swapaxes(parameters["out"], 1, 2) * (hidden > 0)
    inner = inner if masks is None else inner * masks
    return {
        "into": np.swapaxes(X, 1, 2) @ inner,
        "into_bias": inner.sum(axis=1, keepdims=True),
        "out": np.swapaxes(hidden, 1, 2) @ slope,
        "out_bias": slope.sum(axis=1, keepdims=True),
    }


def _padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Stack arrays of different lengths, filled up with 0."""
    stack = np.zeros((len(parts), max(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for place, part in zip(stack, parts, strict=True):
        place[: len(part)] = part
    return stack
