"""Compute the centred sums of products from which least-squares models are fitted."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

# Up to 2 GiB, keep the products of all rows, so that one matrix product sums them for all folds.
_MOST_PRODUCTS = 2**28


@dataclass(frozen=True)
class Sums:
    """Hold centred sums of products over the training rows of F folds.

    Attributes:
        means: means of the columns, (F, m).
        outcome_means: (F, K).
        gram: ΣXᵀX about the means, (F, m, m).
        cross: ΣXᵀY about the means, (F, m, K).
    """

    means: Float[np.ndarray, "F m"]
    outcome_means: Float[np.ndarray, "F K"]
    gram: Float[np.ndarray, "F m m"]
    cross: Float[np.ndarray, "F m K"]


class Moments(Sums):
    """Compute every fold's centred sums of products, given a mask of shape (F, n) that selects training rows."""

    def __init__(
        self,
        X: Float[np.ndarray, "n m"],
        Y: Float[np.ndarray, "n K"],
        training: Bool[np.ndarray, "F n"],
    ) -> None:
        # Centre by the means of all rows first, because sums about a distant origin would cancel.
        centre, outcome_centre = X.mean(axis=0), Y.mean(axis=0)
        X, Y, weights = X - centre, Y - outcome_centre, training.astype(np.float64)
        count = weights.sum(axis=1)[:, None]
        n, m = X.shape
        mean, outcome_mean = weights @ X / count, weights @ Y / count
        # Flattened outer products of rows turn the sums of all folds into one matrix product with the masks.
        if n * m * m <= _MOST_PRODUCTS:
            squares = (X[:, :, None] * X[:, None, :]).reshape(n, m * m)
            products = (X[:, :, None] * Y[:, None, :]).reshape(n, m * Y.shape[1])
            gram = (weights @ squares).reshape(-1, m, m)
            cross = (weights @ products).reshape(-1, m, Y.shape[1])
        else:
            # With a thousand tasks, and as many columns, the products of all rows would take tens of GiB.
            gram = np.stack([X[rows].T @ X[rows] for rows in training])
            cross = np.stack([X[rows].T @ Y[rows] for rows in training])
        # Steiner's identity: Σ(x − x̄)(x − x̄)ᵀ = Σxxᵀ − n x̄x̄ᵀ.
        gram = gram - count[:, None] * mean[:, :, None] * mean[:, None]
        cross = cross - count[:, None] * mean[:, :, None] * outcome_mean[:, None]
        super().__init__(mean + centre, outcome_mean + outcome_centre, gram, cross)


class TaskSums:
    """Hold sums over all pairs and over each task's pairs; the sums over a fold's rows are differences of these sums.

    With S the sum over all rows, Sₐ that over the rows with task a, and x the row of the pair (a, b), the rows without
    a sum to S - Sₐ, and those without a and b to S - Sₐ - S_b + x. So the cost of a fold depends only on the size of
    its sums, not on its number of rows.

    Args:
        X: columns of the pairs.
        Y: outcomes.
        ends: the two tasks of each pair as numbers from 0; no pair twice, none of a task with itself.
        tasks: the number of tasks.
    """

    def __init__(
        self,
        X: Float[np.ndarray, "n m"],
        Y: Float[np.ndarray, "n K"],
        ends: Int[np.ndarray, "n 2"],
        tasks: int,
    ) -> None:
        # Centre by the means of all rows, so that all rows sum to 0 and the subtracted sums are small.
        self.centre, self.outcome_centre = X.mean(axis=0), Y.mean(axis=0)
        self.X, self.Y, self.ends = X - self.centre, Y - self.outcome_centre, ends
        self.gram, self.cross = self.X.T @ self.X, self.X.T @ self.Y
        # Row n is all zeros and represents missing pairs.
        place = np.full((tasks, tasks), len(X))
        place[ends[:, 0], ends[:, 1]] = place[ends[:, 1], ends[:, 0]] = np.arange(len(X))
        of_tasks = np.vstack([self.X, np.zeros(X.shape[1])])[place]
        outcomes = np.vstack([self.Y, np.zeros(Y.shape[1])])[place]
        self.task_counts = np.bincount(ends.ravel(), minlength=tasks)
        self.task_sums, self.task_outcome_sums = of_tasks.sum(axis=1), outcomes.sum(axis=1)
        self.task_grams, self.task_crosses = of_tasks.mT @ of_tasks, of_tasks.mT @ outcomes

    def without_one(self, tasks: Int[np.ndarray, " F"]) -> Sums:
        """Return the sums of the folds that leave one task out."""
        count = len(self.X) - self.task_counts[tasks]
        mean, outcome_mean = (
            # All rows sum to 0, so the remaining rows sum to minus those of the task.
            -sums[tasks] / count[:, None]
            for sums in (self.task_sums, self.task_outcome_sums)
        )
        weighted = count[:, None, None] * mean[:, :, None]
        return Sums(
            mean + self.centre,
            outcome_mean + self.outcome_centre,
            self.gram - self.task_grams[tasks] - weighted * mean[:, None],
            self.cross - self.task_crosses[tasks] - weighted * outcome_mean[:, None],
        )

    def removed_with(self, rows: Int[np.ndarray, " F"]) -> Sums:
        """Return the decrease of the centred sums if all pairs that share a task with a given pair are removed.

        Means are those of the remaining pairs, relative to the means of all pairs.
        """
        x, y, (a, b) = self.X[rows], self.Y[rows], self.ends[rows].T
        # The pair (a, b) itself is counted with both tasks, hence + 1 here and + x below.
        count = (len(self.X) - self.task_counts[a] - self.task_counts[b] + 1)[:, None]
        mean = (x - self.task_sums[a] - self.task_sums[b]) / count
        outcome_mean = (y - self.task_outcome_sums[a] - self.task_outcome_sums[b]) / count
        # Both rank-one terms as one product of small matrices.
        left = np.stack([-x, count * mean], axis=1)
        gram = self.task_grams[a]
        gram += self.task_grams[b]
        gram += left.mT @ np.stack([x, mean], axis=1)
        cross = self.task_crosses[a] + self.task_crosses[b] + left.mT @ np.stack([y, outcome_mean], axis=1)
        return Sums(mean, outcome_mean, gram, cross)
