"""Evaluate merges on each of their tasks, and compare the merges with the fine-tuned models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.evaluation.intervals import accuracy_variance, ratio_variance
from mergeability.evaluation.merge import Merge, Recalibration, base_weights, given_alpha, own_weights
from mergeability.evaluation.probes import Probe
from mergeability.evaluation.scales import UNLABELLED, ScaleChoice, tune
from mergeability.merging.average import Average
from mergeability.merging.method import TUNED, MergeMethod
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

TUNED_FROM = {
    TUNED: "tuned on the tasks' validation images",
    UNLABELLED: "tuned on unlabelled images of the tasks",
}
# The method that is always probed, in addition to the requested ones.
AVERAGE = "average"
Save = Callable[[Merge, str, float, str, pd.DataFrame], None]


def evaluate_models(task_vectors: TaskVectors, evaluator: Evaluator) -> pd.DataFrame:
    """Measure the accuracy of every fine-tuned model on its own task, and of the base model on the same task.

    Args:
        task_vectors: the models.
        evaluator: measures accuracies; must have heads and test images of all tasks.

    Returns:
        A table indexed by task: `classes`, `chance` (1 / classes), `base_accuracy` (zero-shot) and
        `finetuned_accuracy`; accuracies are in [0, 1].

    Raises:
        UserError: the models' tensors are not those of the evaluator's encoder, or a task has no images.

    Examples:
        >>> from mergeability.evaluation import evaluate_models
        >>> from mergeability.examples import tiny_evaluator, tiny_profiles
        >>> table = evaluate_models(tiny_profiles("cars", "dtd").task_vectors, tiny_evaluator("cars", "dtd"))
        >>> table[["classes", "base_accuracy", "finetuned_accuracy"]]
              classes  base_accuracy  finetuned_accuracy
        task
        cars        3          0.375               0.375
        dtd         3          0.625               0.625
    """
    rows = {}
    for task in task_vectors.tasks:
        zero_shot = evaluator.accuracies(*base_weights(task_vectors), (task,))
        tuned = evaluator.accuracies(*own_weights(task_vectors, task), (task,))
        classes = len(evaluator.heads[task])
        rows[task] = {
            "classes": classes,
            "chance": 1 / classes,
            "base_accuracy": zero_shot[task],
            "finetuned_accuracy": tuned[task],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


@dataclass(frozen=True)
class Outcomes:
    """Hold the outcomes of merges.

    Attributes:
        accuracies: one row per set, method and task: `tasks` (the set's, joined by +), `arity`, `method`,
            `alpha`, `task`, `accuracy`, `base_accuracy`, `finetuned_accuracy`, `norm_accuracy`, `kept_gain`, and
            variances where only part of the images was looked at.
        curves: one row per set, method, scale and task on validation images: `tasks`, `arity`, `method`,
            `alpha`, `task`, `norm_accuracy`.
        methods: names of the methods, "_tuned" behind those whose scale was tuned beside a fixed one.
        notes: sentences about the scales.
        probes: one row per set, method and task: `tasks`, `arity`, `method`, `alpha`, `task`, `probe_overlap`,
            `probe_agreement`, `probe_confidence` and `images`; empty if no merge was probed.
    """

    accuracies: pd.DataFrame
    curves: pd.DataFrame
    methods: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    probes: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Evaluation:
    """Evaluate the merges that several methods produce from the same models at several scales.

    Attributes:
        task_vectors: all models.
        evaluator: measures accuracies.
        models: the table of `evaluate_models`; None if there are no labels, so that merges are only probed.
        scales: the scales to evaluate.
        profiles: evidence of all models, for methods that need data.
        recalibration: re-estimates batch-norm statistics; None for an encoder without batch norms.
        probe: probes each merge on unlabelled images before it is evaluated; None if merges are not probed.
        unlabelled: probe that selects scales without labels.
        save: is given each merge that was evaluated: the merge, the method's name, the scale, how that was
            chosen, and the rows of its tasks.
    """

    task_vectors: TaskVectors
    evaluator: Evaluator
    models: pd.DataFrame | None
    scales: ScaleChoice = field(default_factory=ScaleChoice)
    profiles: Profiles | None = None
    recalibration: Recalibration | None = None
    probe: Probe | None = None
    unlabelled: Probe | None = None
    save: Save | None = None

    def sets(
        self, methods: Mapping[str, MergeMethod], sets: Sequence[tuple[str, ...]], run: Run | None = None
    ) -> Outcomes:
        """Merge every set of models by every method, and measure the accuracy on each of the set's tasks.

        Args:
            methods: name → merge method.
            sets: names of the models of each set.
            run: context of the run.
        """

        def measure(item: tuple[tuple[str, ...], str]) -> list[_Measured]:
            chosen, name = item
            return self._measured(self.merge(chosen, methods[name]), name)

        def probe(chosen: tuple[str, ...]) -> pd.DataFrame:
            return self._probed(self.merge(chosen, Average()), AVERAGE, 1.0)

        run = run or Run()
        found = [
            one
            for measured in run.map(
                measure,
                [(chosen, name) for chosen in sets for name in methods],
                description="merging and evaluating",
            )
            for one in measured
        ]
        columns = [column for name in methods for column in self.scales.columns(name, methods[name])]
        probes = [one.probes for one in found]
        if self.probe is not None and AVERAGE not in columns:
            # A probe of plain averaging is informative about all methods, at the cost of one merge.
            probes += run.map(probe, list(sets), description="probing averages")
        curves = [one.curve for one in found if one.curve is not None]
        return Outcomes(
            _concatenated([one.rows for one in found if len(one.rows)]),
            _concatenated(curves),
            columns,
            self._notes(methods, sets, curves),
            _concatenated([one for one in probes if len(one)]),
        )

    def _measured(self, merge: Merge, name: str) -> list["_Measured"]:
        """Probe and measure a merge at each of its scales."""
        found = []
        for column, alpha, alpha_from, curve in self._scaled(merge, name):
            probes = self._probed(merge, column, alpha)
            measured = (
                pd.DataFrame() if self.models is None else self._measure(merge, column, alpha, self.models)
            )
            found.append(_Measured(measured, curve, probes))
            if self.save is not None:
                self.save(merge, column, alpha, alpha_from, measured)
        return found

    def _probed(self, merge: Merge, column: str, alpha: float) -> pd.DataFrame:
        if self.probe is None:
            return pd.DataFrame()
        found = self.probe.values(merge.weights_at(alpha), merge.tasks)
        rows = [
            {
                "alpha": alpha,
                "task": task,
                **{name if name == "images" else f"probe_{name}": value for name, value in values.items()},
            }
            for task, values in found.items()
        ]
        return _labelled(pd.DataFrame(rows), merge, column)

    def merge(self, tasks: Sequence[str], method: MergeMethod) -> Merge:
        """Return the merge of some models by one method; the merge is computed on first use."""
        profiles = self.profiles.select(tasks) if self.profiles is not None and method.needs_data else None
        return Merge(self.task_vectors.select(tasks), method, profiles, self.recalibration)

    def _scaled(self, merge: Merge, name: str) -> list[tuple[str, float, str, pd.DataFrame | None]]:
        """List the outcomes of a merge: its column, the scale, how that was chosen, and the curve if it was tuned."""
        found = []
        for column, alpha in self.scales.columns(name, merge.method).items():
            if alpha in TUNED_FROM:
                by_labels = alpha == TUNED
                chosen, curve = tune(
                    self._validate(merge) if by_labels else self._overlaps(merge),
                    merge.tasks,
                    self.scales.grid,
                    "norm_accuracy" if by_labels else "overlap",
                )
                found.append((column, chosen, TUNED_FROM[str(alpha)], _labelled(curve, merge, column)))
            else:
                found.append((column, *given_alpha(alpha, merge), None))
        return found

    def _overlaps(self, merge: Merge) -> Callable[[float], dict[str, float]]:
        """Return a function from a scale to the tasks' overlaps on unlabelled images."""
        probe = self.unlabelled
        if probe is None:
            raise UserError(
                f"alpha={UNLABELLED} requires unlabelled images of the tasks, but there are none."
            )

        def measure(alpha: float) -> dict[str, float]:
            found = probe.values(merge.weights_at(alpha), merge.tasks)
            return {task: values["overlap"] for task, values in found.items()}

        return measure

    def _validate(self, merge: Merge) -> Callable[[float], dict[str, float]]:
        """Return a function from a scale to the tasks' normalised accuracies on validation images."""
        tuned = {
            task: self.evaluator.accuracies(
                *own_weights(self.task_vectors, task), (task,), split="validation"
            )[task]
            for task in merge.tasks
        }

        def measure(alpha: float) -> dict[str, float]:
            merged = self.evaluator.accuracies(*merge.weights_at(alpha), merge.tasks, split="validation")
            return {task: _ratio(merged[task], tuned[task]) for task in merge.tasks}

        return measure

    def _measure(self, merge: Merge, column: str, alpha: float, models: pd.DataFrame) -> pd.DataFrame:
        found = self.evaluator.accuracies(*merge.weights_at(alpha), merge.tasks)
        known = models.loc[list(merge.tasks)]
        base, tuned = known["base_accuracy"].to_numpy(), known["finetuned_accuracy"].to_numpy()
        merged = np.array([found[task] for task in merge.tasks])
        table = pd.DataFrame(
            {
                "alpha": alpha,
                "task": list(merge.tasks),
                "accuracy": merged,
                "base_accuracy": base,
                "finetuned_accuracy": tuned,
                "norm_accuracy": _ratios(merged, tuned),
                "kept_gain": _ratios(merged - base, tuned - base),
            }
        )
        if self.evaluator.subset is not None:
            table = table.assign(**self._variances(merge, alpha))
        return _labelled(table, merge, column)

    def _variances(self, merge: Merge, alpha: float) -> dict[str, list[float]]:
        """Estimate the sampling error of accuracies on some of the images."""
        merged = self.evaluator.hits(*merge.weights_at(alpha), merge.tasks)
        tuned = {
            task: self.evaluator.hits(*own_weights(self.task_vectors, task), (task,))[task]
            for task in merge.tasks
        }
        return {
            "accuracy_variance": [accuracy_variance(merged[task]) for task in merge.tasks],
            "norm_accuracy_variance": [ratio_variance(merged[task], tuned[task]) for task in merge.tasks],
        }

    def _notes(
        self,
        methods: Mapping[str, MergeMethod],
        sets: Sequence[tuple[str, ...]],
        curves: Sequence[pd.DataFrame],
    ) -> list[str]:
        sizes = sorted({len(chosen) for chosen in sets})
        examples = [self.task_vectors.select(next(s for s in sets if len(s) == size)) for size in sizes]
        return self.scales.notes(methods, examples) + _edge_notes(curves, self.scales.grid)


@dataclass(frozen=True)
class _Measured:
    """A merge at one scale: the rows of its tasks, the curve if the scale was tuned, and the rows of its probe."""

    rows: pd.DataFrame
    curve: pd.DataFrame | None
    probes: pd.DataFrame


def _concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _labelled(table: pd.DataFrame, merge: Merge, column: str) -> pd.DataFrame:
    labels = {"tasks": "+".join(merge.tasks), "arity": len(merge.tasks), "method": column}
    return pd.DataFrame({**dict.fromkeys(labels), **table.to_dict("series")}).assign(**labels)


def _edge_notes(curves: Sequence[pd.DataFrame], grid: Sequence[float]) -> list[str]:
    """Return sentences on methods whose best scale was often an end of the grid."""
    if not curves:
        return []
    best = pd.concat([curve[curve["chosen"]].drop_duplicates(["tasks", "method"]) for curve in curves])
    sentences = []
    for method, alphas in best.groupby("method", sort=False)["alpha"]:
        count = int(alphas.isin([min(grid), max(grid)]).sum())
        if count:
            sentences.append(
                f"{method}: the best α was the first or the last of the grid for {count} of {len(alphas)}"
                " merges. A wider alpha_grid may give better merges."
            )
    return sentences


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _ratios(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN if there is nothing to divide by."""
    known = denominator != 0
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=known)
