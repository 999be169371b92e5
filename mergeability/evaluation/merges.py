"""How good a merge is: its accuracy on each of its tasks, beside that of the models it was made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.evaluation.intervals import accuracy_variance, ratio_variance
from mergeability.evaluation.scales import ScaleChoice, tune
from mergeability.merging.application import apply, fixed_alpha
from mergeability.merging.method import MergeMethod
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.provenance import class_name
from mergeability.task_vectors.vectors import TaskVectors

TUNED_FROM = "tuned on the tasks' validation images"
Save = Callable[["Merge", str, float, str, pd.DataFrame], None]


def describe(merger: object) -> Any:
    """Turn a merge method into a JSON-able record of its class and every option, nested methods included."""
    if dataclasses.is_dataclass(merger) and not isinstance(merger, type):
        options = {field.name: describe(getattr(merger, field.name)) for field in dataclasses.fields(merger)}
        return {"method": class_name(merger), **options}
    if merger is None or isinstance(merger, bool | int | float | str):
        return merger
    raise UserError(
        f"A merge method's options must be numbers, text or methods, not {type(merger).__name__}."
    )


def evaluate_models(task_vectors: TaskVectors, evaluator: Evaluator) -> pd.DataFrame:
    """Measure every fine-tuned model, and the base model, on the model's own task.

    Returns:
        A table indexed by task: `classes`, `chance`, `base_accuracy` (zero-shot), `finetuned_accuracy`.
    """
    base = task_vectors.base_hash
    rows = {}
    for task in task_vectors.tasks:
        zero_shot = evaluator.accuracies({"file": base}, lambda: _state_of_base(task_vectors), (task,))
        tuned = evaluator.accuracies(*_tuned(task_vectors, task), (task,))
        classes = len(evaluator.heads[task])
        rows[task] = {
            "classes": classes,
            "chance": 1 / classes,
            "base_accuracy": zero_shot[task],
            "finetuned_accuracy": tuned[task],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


@dataclass(frozen=True)
class Recalibration:
    """Batch-norm statistics of merged weights, on the calibration images of the merged tasks.

    Attributes:
        evaluator: holds the encoder.
        views: hold the images.
    """

    evaluator: Evaluator
    views: Views

    def make(self, state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the state dict with new statistics."""
        samples = Inputs.joined([self.views.samples(task) for task in sorted(tasks)])
        return self.evaluator.recalibrated(state, samples.tensors["images"], tasks)

    def key(self, tasks: Sequence[str]) -> list[str]:
        """Say which images the statistics depend on."""
        return [self.views.samples(task).without_labels().fingerprint for task in sorted(tasks)]


@dataclass
class Merge:
    """One set of models merged by one method: the merged direction is computed when it is first needed, once.

    Attributes:
        task_vectors: the models of the set.
        method: the merge method.
        profiles: the models' evidence, for a method that needs data.
        recalibrate: makes batch-norm statistics anew for merged weights; None where there are none.
    """

    task_vectors: TaskVectors
    method: MergeMethod
    profiles: Profiles | None = None
    recalibrate: "Recalibration | None" = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the models."""
        return self.task_vectors.tasks

    @cached_property
    def direction(self) -> dict[str, Tensor]:
        """The merged task vector, under the checkpoints' names."""
        given = self.profiles if self.method.needs_data else None
        models = self.task_vectors if given is None else given
        return self.task_vectors.assembled(self.method(models))

    def state(self, alpha: float) -> dict[str, Tensor]:
        """Make the merged weights at a scale."""
        state = apply(_state_of_base(self.task_vectors), self.direction, alpha)
        return state if self.recalibrate is None else self.recalibrate.make(state, self.tasks)

    def weights(self, alpha: float) -> dict[str, Any]:
        """Say what determines the merged weights, as a JSON-able record."""
        record = {
            "base": self.task_vectors.base_hash,
            # With their names: masks depend on them, and so does the order of every sum.
            "models": sorted(self.task_vectors.hashes.items()),
            "merge": _without_alpha(describe(self.method)),
            "alpha": alpha,
        }
        if self.method.needs_data and self.profiles is not None:
            record["data"] = self.profiles.data_key
        if self.task_vectors.layout:
            record["layout"] = self.task_vectors.layout
        if self.recalibrate is not None:
            record["recalibrated"] = self.recalibrate.key(self.tasks)
        return record


@dataclass(frozen=True)
class Outcomes:
    """What merging came to.

    Attributes:
        accuracies: one row per set, method and task: `tasks` (the set's, joined by +), `arity`, `method`,
            `alpha`, `task`, `accuracy`, `base_accuracy`, `finetuned_accuracy`, `norm_accuracy`, `kept_gain`, and
            variances where only part of the images was looked at.
        curves: one row per set, method, scale and task on validation images: `tasks`, `arity`, `method`,
            `alpha`, `task`, `norm_accuracy`.
        methods: names of the methods, "_tuned" behind those whose scale was tuned beside a fixed one.
        notes: sentences about the scales.
    """

    accuracies: pd.DataFrame
    curves: pd.DataFrame
    methods: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """What merges are evaluated with.

    Attributes:
        task_vectors: all models.
        evaluator: measures accuracies.
        models: the table of `evaluate_models`.
        scales: at which scales.
        profiles: evidence of all models, for methods that need data.
        recalibration: makes batch-norm statistics anew; None for an encoder without batch norms.
        save: is given each merge that was evaluated: the merge, the method's name, the scale, how that was
            chosen, and the rows of its tasks.
    """

    task_vectors: TaskVectors
    evaluator: Evaluator
    models: pd.DataFrame
    scales: ScaleChoice = field(default_factory=ScaleChoice)
    profiles: Profiles | None = None
    recalibration: Recalibration | None = None
    save: Save | None = None

    def sets(
        self, methods: Mapping[str, MergeMethod], sets: Sequence[tuple[str, ...]], run: Run | None = None
    ) -> Outcomes:
        """Merge every set by every method and measure the merge on each of the set's tasks.

        Args:
            methods: name → merge method.
            sets: names of the models of each set.
            run: the surroundings.
        """

        def measure(item: tuple[tuple[str, ...], str]) -> list[tuple[pd.DataFrame, pd.DataFrame | None]]:
            chosen, name = item
            return self._measured(self.merge(chosen, methods[name]), name)

        found = (run or Run()).map(
            measure,
            [(chosen, name) for chosen in sets for name in methods],
            description="merging and evaluating",
        )
        rows = [measured for one in found for measured, _ in one]
        curves = [curve for one in found for _, curve in one if curve is not None]
        columns = [column for name in methods for column in self.scales.columns(name, methods[name])]
        return Outcomes(
            pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
            pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
            columns,
            self._notes(methods, sets, curves),
        )

    def _measured(self, merge: Merge, name: str) -> list[tuple[pd.DataFrame, pd.DataFrame | None]]:
        """Measure a merge at each of its scales; return the rows of its tasks, and the curve if it was tuned."""
        found = []
        for column, alpha, alpha_from, curve in self._scaled(merge, name):
            measured = self._measure(merge, column, alpha)
            found.append((measured, curve))
            if self.save is not None:
                self.save(merge, column, alpha, alpha_from, measured)
        return found

    def merge(self, tasks: Sequence[str], method: MergeMethod) -> Merge:
        """Prepare the merge of some models."""
        profiles = self.profiles.select(tasks) if self.profiles is not None and method.needs_data else None
        return Merge(self.task_vectors.select(tasks), method, profiles, self.recalibration)

    def _scaled(self, merge: Merge, name: str) -> list[tuple[str, float, str, pd.DataFrame | None]]:
        """List the outcomes of a merge: its column, the scale, how that was chosen, and the curve if it was tuned."""
        found = []
        for column, alpha in self.scales.columns(name, merge.method).items():
            if alpha is None:
                chosen, curve = tune(self._validate(merge), merge.tasks, self.scales.grid)
                found.append((column, chosen, TUNED_FROM, _labelled(curve, merge, column)))
            else:
                found.append((column, *given_alpha(alpha, merge), None))
        return found

    def _validate(self, merge: Merge) -> Callable[[float], dict[str, float]]:
        """Return a function from a scale to the tasks' normalised accuracies on validation images."""
        tuned = {
            task: self.evaluator.accuracies(*_tuned(self.task_vectors, task), (task,), split="validation")[
                task
            ]
            for task in merge.tasks
        }

        def measure(alpha: float) -> dict[str, float]:
            merged = self.evaluator.accuracies(
                merge.weights(alpha), lambda: merge.state(alpha), merge.tasks, split="validation"
            )
            return {task: _ratio(merged[task], tuned[task]) for task in merge.tasks}

        return measure

    def _measure(self, merge: Merge, column: str, alpha: float) -> pd.DataFrame:
        found = self.evaluator.accuracies(merge.weights(alpha), lambda: merge.state(alpha), merge.tasks)
        known = self.models.loc[list(merge.tasks)]
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
        """Estimate how far accuracies on part of the images may be off."""
        merged = self.evaluator.hits(merge.weights(alpha), lambda: merge.state(alpha), merge.tasks)
        tuned = {
            task: self.evaluator.hits(*_tuned(self.task_vectors, task), (task,))[task] for task in merge.tasks
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


def given_alpha(alpha: float | str, merge: Merge) -> tuple[float, str]:
    """Turn a scale that needs no tuning, a number or "own", into a number; and say where it comes from."""
    if isinstance(alpha, str):
        return fixed_alpha(merge.method, merge.task_vectors), "the method's own"
    return float(alpha), "given for all methods"


def _labelled(table: pd.DataFrame, merge: Merge, column: str) -> pd.DataFrame:
    labels = {"tasks": "+".join(merge.tasks), "arity": len(merge.tasks), "method": column}
    return pd.DataFrame({**dict.fromkeys(labels), **table.to_dict("series")}).assign(**labels)


def _tuned(task_vectors: TaskVectors, task: str) -> tuple[dict[str, str], Callable[[], dict[str, Tensor]]]:
    return {"file": task_vectors.hashes[task]}, lambda: task_vectors.model(task).state_dict()


def _without_alpha(described: Any) -> Any:
    """Drop the scales from a method's record: the direction does not depend on them."""
    if not isinstance(described, dict):
        return described
    return {name: _without_alpha(value) for name, value in described.items() if name != "alpha"}


def _edge_notes(curves: Sequence[pd.DataFrame], grid: Sequence[float]) -> list[str]:
    """Say for which methods the best scale was often an end of the grid."""
    if not curves:
        return []
    best = pd.concat([curve[curve["chosen"]].drop_duplicates(["tasks", "method"]) for curve in curves])
    sentences = []
    for method, alphas in best.groupby("method", sort=False)["alpha"]:
        count = int(alphas.isin([min(grid), max(grid)]).sum())
        if count:
            sentences.append(
                f"{method}: the best α was an end of the grid for {count} of {len(alphas)} merges; "
                "a wider alpha_grid may do better."
            )
    return sentences


def _state_of_base(task_vectors: TaskVectors) -> dict[str, Tensor]:
    return task_vectors.base_checkpoint.state_dict()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _ratios(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where there is nothing to divide by."""
    known = denominator != 0
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=known)
