"""What an analysis found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from mergeability.errors import UserError
from mergeability.prediction.pair_table import TARGETS

if TYPE_CHECKING:
    from mergeability.prediction.scorer import Scorer
    from mergeability.prediction.validation.evaluate import PredictionResult

OBJECTIVES = (*TARGETS, "finetuned_accuracy")
"""Objectives available to a hyper-parameter search."""


@dataclass(frozen=True)
class Analysis:
    """Everything one report shows; any part may be empty.

    `methods` are the merge methods with measured outcomes, `merged` those whose merges were probed without labels.
    `sets` has one row a set of more than two models, `accuracies` one row a merge and task, `curves` one row a
    merge, tried scale and task. `models` is indexed by task with the accuracies `chance`, `pixel_accuracy`,
    `base_accuracy` and `finetuned_accuracy` (whichever are known), in [0, 1]. `pairs` has one row a pair: `task_a`,
    `task_b`, metrics and outcomes. `evaluated` is how many of them a budget had evaluated, None without one;
    `predicted_pairs` and `predicted_accuracy` are what `prediction.unevaluated` says of the others. `alphas` gives
    each method's scaling coefficient. `fitted` is the predictor that this run fitted for later ones, `scorer` that
    of an earlier run, `scores` what it gives each pair and `transfer` how that compares with outcomes. `missing`
    are sentences, `run` the facts of `run.json`.
    """

    title: str
    pairs: pd.DataFrame
    metrics: list[str]
    methods: list[str] = field(default_factory=list)
    models: pd.DataFrame = field(default_factory=pd.DataFrame)
    alphas: Mapping[str, Any] = field(default_factory=dict)
    prediction: "PredictionResult | None" = None
    missing: list[str] = field(default_factory=list)
    run: Mapping[str, Any] = field(default_factory=dict)
    sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    accuracies: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    fitted: "Scorer | None" = None
    scorer: "Scorer | None" = None
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    transfer: pd.DataFrame = field(default_factory=pd.DataFrame)
    merged: list[str] = field(default_factory=list)
    evaluated: int | None = None
    predicted_pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    predicted_accuracy: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tasks(self) -> list[str]:
        """List the tasks in the order of the models, then of the pairs."""
        ends = (
            pd.concat([self.pairs["task_a"], self.pairs["task_b"]])
            if len(self.pairs)
            else pd.Series(dtype=object)
        )
        # Each once before they become Python's: of 499,500 pairs, every look would take seconds.
        return list(dict.fromkeys([*map(str, self.models.index), *ends.astype(str).unique().tolist()]))

    @property
    def of_budget(self) -> list[str]:
        """Say how many pairs a budget had evaluated, and what the numbers of the others are; nothing without one."""
        others = len(self.pairs) - (self.evaluated or 0)
        if self.evaluated is None or others == 0:
            return []
        sentence = f"{self.evaluated} of the {len(self.pairs)} pairs were merged and evaluated."
        if self.predicted_pairs.empty:
            return [f"{sentence} Those that were not ({others}) are not predicted either."]
        return [
            f"{sentence} The outcomes of those that were not ({others}) are predictions from these, in"
            " predicted_pairs.csv, and in no other number of this run."
        ]

    @property
    def targets(self) -> list[str]:
        """List the targets that at least one method has outcomes of, the default first."""
        columns = set(self.pairs.columns)
        return [t for t in TARGETS if any(f"{t}_{m}" in columns for m in self.methods)]


def objective(analysis: Analysis, name: str) -> float:
    """Return one number an analysis is judged by: `norm_acc` or `acc`, of the merges, means over pairs and methods;
    or `finetuned_accuracy`, of the models on their own, the mean over tasks.

    Raises:
        UserError: another name, or what this analysis has not measured.
    """  # noqa: D205
    if name not in OBJECTIVES:
        raise UserError(f"Expected objectives among {', '.join(OBJECTIVES)}, got {name!r}.")
    columns = [f"{name}_{method}" for method in analysis.methods]
    frame = analysis.models.get([name]) if name == "finetuned_accuracy" else analysis.pairs.get(columns)
    if frame is None or frame.empty:
        raise UserError(f"This analysis has not measured {name}: it needs a suite of tasks, and merges.")
    return float(frame.to_numpy(dtype=float).mean())
