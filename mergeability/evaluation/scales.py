"""The scale α of a merge: the method's own, one number, or the best of a grid on validation images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.merging.application import published_alpha, scaled_by
from mergeability.merging.method import PUBLISHED, TUNED, MergeMethod
from mergeability.task_vectors.vectors import TaskVectors

BOTH = "both"
# From half of plain averaging of a few models to twice their average.
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class ScaleChoice:
    """At which scales a merge is evaluated.

    Attributes:
        alpha: None for each method's own, a number for all methods, "tuned", or "both": the method's own, and
            beside it the tuned one as `<method>_tuned`.
        grid: the scales that tuning tries, ascending.

    Raises:
        UserError: alpha is something else, or the grid is not ascending numbers.
    """

    alpha: float | int | str | None = None
    grid: Sequence[float | int] = GRID

    def __post_init__(self) -> None:
        is_word = self.alpha in (TUNED, BOTH)
        if self.alpha is not None and not is_word and not _is_number(self.alpha):
            raise UserError(f"Expected alpha to be a finite number, tuned or both; got {self.alpha!r}.")
        if isinstance(self.grid, str) or not self.grid or not all(map(_is_number, self.grid)):
            raise UserError(f"Expected alpha_grid to be a list of numbers, got {self.grid!r}.")
        if any(a >= b for a, b in zip(self.grid, self.grid[1:])):
            raise UserError(f"Expected alpha_grid to be ascending, got {list(self.grid)}.")

    def columns(self, name: str, method: MergeMethod) -> dict[str, float | str | None]:
        """Say which outcomes a method has: column → a number, "own", or None for the tuned scale."""
        if self.alpha == BOTH:
            return {name: "own", f"{name}_tuned": None}
        if self.alpha == TUNED or (self.alpha is None and method.alpha == TUNED):
            return {name: None}
        return {name: "own"} if self.alpha is None else {name: float(self.alpha)}

    def tunes(self, methods: Mapping[str, MergeMethod]) -> bool:
        """Return whether any of the methods needs validation images."""
        return any(None in self.columns(name, method).values() for name, method in methods.items())

    def notes(self, methods: Mapping[str, MergeMethod], sets: Sequence[TaskVectors]) -> list[str]:
        """Say where a scale should have come from a publication that has none for these models.

        Args:
            methods: name → method.
            sets: one set of models of each size.
        """
        sentences = []
        for name, method in methods.items():
            source = scaled_by(method)
            if source.alpha != PUBLISHED or "own" not in self.columns(name, method).values():
                continue
            missing = [len(one.tasks) for one in sets if not published_alpha(source, one)[1]]
            if missing:
                counts = " or ".join(map(str, missing))
                sentences.append(
                    f"{name}: no α is published for {counts} models of this architecture; 1 was used."
                )
        return sentences


def tune(
    measure: Callable[[float], Mapping[str, float]], tasks: Sequence[str], grid: Sequence[float | int]
) -> tuple[float, pd.DataFrame]:
    """Choose the scale with the highest mean over tasks of the normalised validation accuracy.

    Of equals the smallest wins. A task whose fine-tuned model is never right has no normalised accuracy and no
    say; where no task has one, the first scale of the grid is returned.

    Args:
        measure: scale → task → normalised accuracy.
        tasks: their names.
        grid: the scales, ascending.

    Returns:
        The scale, and the curve: `alpha`, `task`, `norm_accuracy`, and `chosen` in the rows of the scale.
    """
    rows, means = [], []
    for alpha in map(float, grid):
        found = measure(alpha)
        known = [found[task] for task in tasks if not math.isnan(found[task])]
        means.append(sum(known) / len(known) if known else -math.inf)
        rows += [{"alpha": alpha, "task": task, "norm_accuracy": found[task]} for task in tasks]
    best = float(grid[int(np.argmax(means))])
    curve = pd.DataFrame(rows)
    return best, curve.assign(chosen=curve["alpha"] == best)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
