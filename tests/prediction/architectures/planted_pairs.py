"""Pair tables in which it is known what matters."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.analyses import Analysis
from mergeability.prediction.architectures.cells import Cells, coefficient_table
from mergeability.prediction.architectures.transfer import transferred

TASKS = tuple("abcdefghij")
# Few, since every pair of one analysis is predicted by fits on another.
FEW = TASKS[:7]
METRICS = ("one", "two", "three", "four", "five", "six", "seven")
METHODS = ("ties", "tsv")
SAME = {"one": 0.2, "two": -0.15, "three": 0.1}


def planted(
    architecture: str = "small",
    seed: int = 0,
    weights: "Mapping[str, Mapping[str, float]] | None" = None,
    tasks: Sequence[str] = TASKS,
    effects: float = 0.0,
    interaction: float = 0.0,
    noise: float = 0.001,
    scale: float = 1.0,
    draw: int = 0,
    names: Sequence[str] = METRICS,
) -> Analysis:
    """Make the pairs of one architecture and seed.

    Args:
        architecture: its name.
        seed: changes the noise only.
        weights: method → metric → coefficient; the methods are its keys.
        tasks: names.
        effects: standard deviation of the effect of a task, the same for all seeds and methods.
        interaction: standard deviation of the effect of a pair, the same for all seeds and methods.
        noise: standard deviation of what changes with the seed, and with the method.
        scale: of the metrics, a unit of the architecture.
        draw: seed of the metrics and effects.
        names: of the metrics.
    """
    weights = dict.fromkeys(METHODS, SAME) if weights is None else weights
    fixed = np.random.default_rng(draw)
    pairs = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])
    values = {name: fixed.normal(size=len(pairs)) for name in names}
    of_task = dict(zip(tasks, effects * fixed.normal(size=len(tasks)), strict=True))
    of_pair = interaction * fixed.normal(size=len(pairs))
    changes = np.random.default_rng([seed, sum(map(ord, architecture))])
    for name, value in values.items():
        pairs[name] = scale * value
    sums = pairs["task_a"].map(of_task) + pairs["task_b"].map(of_task)
    for method, own in weights.items():
        outcome = 0.5 + sums + of_pair + noise * changes.normal(size=len(pairs))
        for name, weight in own.items():
            outcome = outcome + 0.1 * weight * values[name]
        pairs[f"norm_acc_{method}"] = outcome
        pairs[f"acc_{method}"] = outcome - 0.1
    return Analysis(architecture, seed, pairs, tuple(names))


def cells_of(*analyses: Analysis, metrics: Sequence[str] = METRICS) -> Cells:
    """Fit and collect the cells of several analyses."""
    fits = {(one.architecture, one.seed): coefficient_table(one, metrics) for one in analyses}
    return Cells.of(analyses, metrics, fits)


def no_predictions(_fitted: Analysis, _new: Analysis) -> pd.DataFrame:
    """Predict nothing, for tests about something else."""
    return pd.DataFrame(
        columns=["predictor", "method", "task_a", "task_b", "measured", "predicted", "training_mean"]
    )


def only_across(fitted: Analysis, new: Analysis) -> pd.DataFrame:
    """Predict another architecture only, for tests about nothing else."""
    same = fitted.architecture == new.architecture
    return no_predictions(fitted, new) if same else transferred(fitted, new)
