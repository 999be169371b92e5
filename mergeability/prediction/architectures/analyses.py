"""The analyses that are compared: one pair table per architecture and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from mergeability.prediction.pair_table import outcome_methods, task_order

TARGET = "norm_acc"
"""The outcome of all comparisons between architectures: accuracy itself depends on how hard the tasks are."""


@dataclass(frozen=True)
class Analysis:
    """Hold one analysis: all pairs of models with the same architecture and the same seed.

    Attributes:
        architecture: name of the model, with that of its suite where a model has several.
        seed: of the fine-tuning.
        pairs: one row per pair, with metrics and outcomes.
        metrics: columns for predictors, without those that have no value.

    `tasks` and `methods` are computed once, so `pairs` must not change afterwards.

    Examples:
        >>> from mergeability.prediction.architectures.analyses import Analysis
        >>> from mergeability.prediction.examples import example_pairs
        >>> one = Analysis("wide", 0, example_pairs(), ("cosine", "distance"))
        >>> one.methods, len(one.tasks)
        (('task_arithmetic', 'ties'), 6)
    """

    architecture: str
    seed: int
    pairs: pd.DataFrame
    metrics: tuple[str, ...]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in alphabetical order."""
        return tuple(sorted(task_order(self.pairs[["task_a", "task_b"]].to_numpy(dtype=object))))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The merge methods for which the pairs have outcomes."""
        return tuple(outcome_methods(self.pairs, [TARGET]))

    def sorted(self) -> "Analysis":
        """Return the same analysis after sorting the tasks of each pair, and then all pairs, alphabetically."""
        ends = [sorted(map(str, pair)) for pair in self.pairs[["task_a", "task_b"]].to_numpy().tolist()]
        pairs = self.pairs.assign(task_a=[a for a, _ in ends], task_b=[b for _, b in ends])
        ordered = pairs.sort_values(["task_a", "task_b"], ignore_index=True)
        return Analysis(self.architecture, self.seed, ordered, self.metrics)


def architectures_of(analyses: Sequence[Analysis]) -> list[str]:
    """List the architectures in order of appearance."""
    return list(dict.fromkeys(one.architecture for one in analyses))


def seeds_of(analyses: Sequence[Analysis]) -> list[int]:
    """List the seeds in ascending order."""
    return sorted({one.seed for one in analyses})


def tasks_of(analyses: Sequence[Analysis]) -> list[str]:
    """List the tasks of all analyses in alphabetical order."""
    return sorted({task for one in analyses for task in one.tasks})


def methods_of(analyses: Sequence[Analysis]) -> list[str]:
    """List the merge methods of all analyses in order of appearance."""
    return list(dict.fromkeys(method for one in analyses for method in one.methods))


def common_metrics(analyses: Sequence[Analysis]) -> tuple[str, ...]:
    """List the metrics that every analysis has for all of its pairs, in the order of the first analysis."""
    known = [
        {name for name in one.metrics if name in one.pairs and one.pairs[name].notna().all()}
        for one in analyses
    ]
    return tuple(name for name in analyses[0].metrics if all(name in own for own in known))
