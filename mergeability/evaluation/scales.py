"""Choose the scale α of a merge: the method's default, a number, or the best of a grid."""

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

OWN, UNLABELLED, BOTH = "own", "unlabelled", "both"
# Suffixes of method names if several scales are evaluated.
_SUFFIXES = {OWN: "", TUNED: "_tuned", UNLABELLED: "_unlabelled"}
# 0.1 is half of averaging for methods that sum five task vectors, 2 is twice the average for methods that average.
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class ScaleChoice:
    """Specify the scales at which merges are evaluated.

    Attributes:
        alpha: None for each method's own, a number for all methods, "tuned" (the best of the grid on labelled
            validation images) or "unlabelled" (the best of the grid without labels); or a list of "own", "tuned" and
            "unlabelled", whose outcomes stand side by side as `<method>`, `<method>_tuned` and
            `<method>_unlabelled`; "both" is [own, tuned].
        grid: the scales that tuning tries, ascending.

    Raises:
        UserError: alpha is something else, or the grid is not ascending numbers.
    """

    alpha: float | int | str | Sequence[str] | None = None
    grid: Sequence[float | int] = GRID

    def __post_init__(self) -> None:
        if not (self.alpha is None or _is_number(self.alpha) or _are_words(self.alpha)):
            raise UserError(
                "Expected alpha to be a finite number, one of the words"
                f" {', '.join(map(repr, (*_SUFFIXES, BOTH)))}, or a list of such words, got {self.alpha!r}."
            )
        if isinstance(self.grid, str) or not self.grid or not all(map(_is_number, self.grid)):
            raise UserError(f"Expected alpha_grid to be a list of numbers, got {self.grid!r}.")
        if any(a >= b for a, b in zip(self.grid, self.grid[1:])):
            raise UserError(f"Expected alpha_grid to be ascending, got {list(self.grid)}.")

    @property
    def words(self) -> tuple[str, ...]:
        """The requested kinds of scale, such as "tuned"; empty if `alpha` is a number or None."""
        if self.alpha is None or isinstance(self.alpha, int | float):
            return ()
        asked = [self.alpha] if isinstance(self.alpha, str) else self.alpha
        each = [word for one in asked for word in ((OWN, TUNED) if one == BOTH else (one,))]
        return tuple(dict.fromkeys(each))

    def columns(self, name: str, method: MergeMethod) -> dict[str, float | str]:
        """Return the scale of each outcome column of a method: a number, "own", "tuned" or "unlabelled"."""
        if self.alpha is None:
            return {name: TUNED if method.alpha == TUNED else OWN}
        words = self.words
        if not words:
            return {name: float(self.alpha)}  # type: ignore[arg-type]
        return {name: words[0]} if len(words) == 1 else {f"{name}{_SUFFIXES[word]}": word for word in words}

    def tunes(self, methods: Mapping[str, MergeMethod], by: str = TUNED) -> bool:
        """Return whether at least one method uses the kind of scale `by`, for example "tuned" or "unlabelled"."""
        return any(by in self.columns(name, method).values() for name, method in methods.items())

    def notes(self, methods: Mapping[str, MergeMethod], sets: Sequence[TaskVectors]) -> list[str]:
        """Return messages about methods without a published scale for these models.

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
                    f"{name}: no α is published for {counts} models of this architecture; α = 1 is used."
                )
        return sentences


def tune(
    measure: Callable[[float], Mapping[str, float]],
    tasks: Sequence[str],
    grid: Sequence[float | int],
    value: str = "norm_accuracy",
) -> tuple[float, pd.DataFrame]:
    """Return the scale with the highest mean value over tasks.

    On ties the smallest scale is selected. A task without a value (a fine-tuned model with accuracy 0 has no normalised
    accuracy) is ignored; if no task has a value, the first scale of the grid is returned.

    Args:
        measure: scale → task → value, such as the normalised accuracy on validation images.
        tasks: their names.
        grid: the scales, ascending.
        value: name of the value in the curve.

    Returns:
        The scale, and the curve: `alpha`, `task`, the value, and `chosen` in the rows of the scale.
    """
    rows, means = [], []
    for alpha in map(float, grid):
        found = measure(alpha)
        known = [found[task] for task in tasks if not math.isnan(found[task])]
        means.append(sum(known) / len(known) if known else -math.inf)
        rows += [{"alpha": alpha, "task": task, value: found[task]} for task in tasks]
    best = float(grid[int(np.argmax(means))])
    curve = pd.DataFrame(rows)
    return best, curve.assign(chosen=curve["alpha"] == best)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_words(value: Any) -> bool:
    words = [value] if isinstance(value, str) else value
    is_list = isinstance(words, list | tuple) and len(words) > 0
    return is_list and all(isinstance(word, str) and (word in _SUFFIXES or word == BOTH) for word in words)
