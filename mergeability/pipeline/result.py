"""Define the result of an analysis."""

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
    """Hold the results of an analysis, from which the report is written.

    Attributes:
        title: title of the report.
        pairs: one row per pair of models: `task_a`, `task_b`, metrics, and outcomes such as `norm_acc_ties`.
        metrics: columns of `pairs` that are metrics.
        methods: merge methods with measured outcomes.
        models: accuracies in [0, 1], indexed by task: `chance`, `pixel_accuracy`, `base_accuracy` and
            `finetuned_accuracy`, as far as they are known.
        alphas: merge method → its scale α.
        prediction: results of the prediction study.
        missing: sentences about omissions, with reasons.
        run: the facts written to `run.json`.
        sets: one row per set of more than two models.
        accuracies: one row per merge and task.
        curves: one row per merge, tried scale and task.
        fitted: the predictor fitted by this run, for later ones.
        scorer: the predictor of an earlier run with which pairs were scored.
        scores: predictions of `scorer`, one row per pair.
        transfer: comparison of these predictions with outcomes.
        merged: merge methods whose merges were probed without labels.
        evaluated: number of pairs evaluated within a budget; None without a budget.
        predicted_pairs: predicted outcomes of the other pairs.
        predicted_accuracy: accuracy of such predictions on pairs that were evaluated.
        layers: the cosine of each pair's task vectors by layer, as `layer_cosines` returns it.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.pipeline import Analysis
        >>> pairs = pd.DataFrame({"task_a": ["cars"], "task_b": ["svhn"], "norm_acc_ties": [0.95]})
        >>> analysis = Analysis("Two models", pairs, metrics=[], methods=["ties"])
        >>> analysis.tasks, analysis.targets
        (['cars', 'svhn'], ['norm_acc'])
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
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks: first the tasks of the models, then other tasks that occur in pairs."""
        ends = (
            pd.concat([self.pairs["task_a"], self.pairs["task_b"]])
            if len(self.pairs)
            else pd.Series(dtype=object)
        )
        # Make names unique before converting them to Python: for 499,500 pairs every conversion would take seconds.
        return list(dict.fromkeys([*map(str, self.models.index), *ends.astype(str).unique().tolist()]))

    @property
    def of_budget(self) -> list[str]:
        """Return a sentence with the numbers of evaluated and predicted pairs; "" if all pairs were evaluated."""
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
        """The targets for which at least one method has outcomes; the first of them is the default target."""
        columns = set(self.pairs.columns)
        return [t for t in TARGETS if any(f"{t}_{m}" in columns for m in self.methods)]

    def ranked_methods(self, target: str) -> pd.Series:
        """Return the mean outcome of every measured method over its pairs, sorted from best to worst.

        Every page and text takes the best method from here. Equal means are ordered by the other target, then as the
        methods were named.

        Args:
            target: `norm_acc` or `acc`.
        """
        means = pd.DataFrame(
            {
                name: {
                    method: self.pairs.get(f"{name}_{method}", pd.Series(dtype=float)).mean()
                    for method in self.methods
                }
                for name in (target, *(name for name in TARGETS if name != target))
            },
            dtype=float,
        )
        means = means[means[target].notna()]
        return means.sort_values(list(means.columns), ascending=False, kind="stable")[target]


def objective(analysis: Analysis, name: str) -> float:
    """Return one objective of an analysis: `norm_acc`, `acc` or `finetuned_accuracy`.

    The first two are means of merges over pairs and methods, the last is the mean of the models over tasks.

    Raises:
        UserError: the name is unknown, or this analysis did not measure it.
    """
    if name not in OBJECTIVES:
        raise UserError(f"Expected objectives among {', '.join(OBJECTIVES)}, got {name!r}.")
    columns = [f"{name}_{method}" for method in analysis.methods]
    frame = analysis.models.get([name]) if name == "finetuned_accuracy" else analysis.pairs.get(columns)
    if frame is None or frame.empty:
        raise UserError(f"This analysis did not measure {name}, which requires merges and a suite of tasks.")
    return float(frame.to_numpy(dtype=float).mean())
