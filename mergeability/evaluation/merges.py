"""How good a merge is: its accuracy on each of its tasks, beside that of the models it was made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Judge
from mergeability.evaluation.intervals import accuracy_variance, mean_interval, ratio_variance
from mergeability.evaluation.scales import ScaleChoice, tune
from mergeability.merging.application import apply, fixed_alpha
from mergeability.merging.method import MergeMethod
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.progress import Progress
from mergeability.provenance import class_name
from mergeability.task_vectors.vectors import TaskVectors

TUNED_FROM = "tuned on the tasks' validation images"
Save = Callable[["Trial", str, float, str, pd.DataFrame], None]


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


def evaluate_models(task_vectors: TaskVectors, judge: Judge) -> pd.DataFrame:
    """Measure every fine-tuned model, and the base model, on the model's own task.

    Returns:
        A table indexed by task: `classes`, `chance`, `base_accuracy` (zero-shot), `finetuned_accuracy`.
    """
    base = task_vectors.base_hash
    rows = {}
    for task in task_vectors.tasks:
        zero_shot = judge.accuracies({"file": base}, lambda: _state_of_base(task_vectors), (task,))
        tuned = judge.accuracies(*_tuned(task_vectors, task), (task,))
        classes = len(judge.heads[task])
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
        judge: holds the encoder.
        views: hold the images.
    """

    judge: Judge
    views: Views

    def make(self, state: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the state dict with new statistics."""
        samples = Inputs.joined([self.views.samples(task) for task in sorted(tasks)])
        return self.judge.recalibrated(state, samples.tensors["images"], tasks)

    def key(self, tasks: Sequence[str]) -> list[str]:
        """Say which images the statistics depend on."""
        return [self.views.samples(task).without_labels().fingerprint for task in sorted(tasks)]


@dataclass
class Trial:
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
        judge: measures accuracies.
        models: the table of `evaluate_models`.
        scales: at which scales.
        profiles: evidence of all models, for methods that need data.
        recalibration: makes batch-norm statistics anew; None for an encoder without batch norms.
        save: is given each merge that was evaluated: the trial, the method's name, the scale, how that was
            chosen, and the rows of its tasks.
    """

    task_vectors: TaskVectors
    judge: Judge
    models: pd.DataFrame
    scales: ScaleChoice = field(default_factory=ScaleChoice)
    profiles: Profiles | None = None
    recalibration: Recalibration | None = None
    save: Save | None = None

    def sets(
        self, methods: Mapping[str, MergeMethod], sets: Sequence[tuple[str, ...]], progress: Progress
    ) -> Outcomes:
        """Merge every set by every method and measure the merge on each of the set's tasks.

        Args:
            methods: name → merge method.
            sets: names of the models of each set.
            progress: wraps the loop over merges: (items, description, total) → the items.
        """
        rows: list[pd.DataFrame] = []
        curves: list[pd.DataFrame] = []
        merges = [(chosen, name) for chosen in sets for name in methods]
        for chosen, name in progress(merges, "merging and evaluating", len(merges)):
            trial = self.trial(chosen, methods[name])
            for column, alpha, alpha_from, curve in self._scaled(trial, name):
                measured = self._measure(trial, column, alpha)
                rows.append(measured)
                curves += [curve] if curve is not None else []
                if self.save is not None:
                    self.save(trial, column, alpha, alpha_from, measured)
        columns = [column for name in methods for column in self.scales.columns(name, methods[name])]
        return Outcomes(
            pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
            pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
            columns,
            self._notes(methods, sets, curves),
        )

    def trial(self, tasks: Sequence[str], method: MergeMethod) -> Trial:
        """Prepare the merge of some models."""
        profiles = self.profiles.select(tasks) if self.profiles is not None and method.needs_data else None
        return Trial(self.task_vectors.select(tasks), method, profiles, self.recalibration)

    def _scaled(self, trial: Trial, name: str) -> list[tuple[str, float, str, pd.DataFrame | None]]:
        """List the outcomes of a merge: its column, the scale, how that was chosen, and the curve if it was tuned."""
        found = []
        for column, alpha in self.scales.columns(name, trial.method).items():
            if alpha is None:
                chosen, curve = tune(self._validate(trial), trial.tasks, self.scales.grid)
                found.append((column, chosen, TUNED_FROM, _labelled(curve, trial, column)))
            else:
                found.append((column, *given_alpha(alpha, trial), None))
        return found

    def _validate(self, trial: Trial) -> Callable[[float], dict[str, float]]:
        """Return a function from a scale to the tasks' normalised accuracies on validation images."""
        tuned = {
            task: self.judge.accuracies(*_tuned(self.task_vectors, task), (task,), split="validation")[task]
            for task in trial.tasks
        }

        def measure(alpha: float) -> dict[str, float]:
            merged = self.judge.accuracies(
                trial.weights(alpha), lambda: trial.state(alpha), trial.tasks, split="validation"
            )
            return {task: _ratio(merged[task], tuned[task]) for task in trial.tasks}

        return measure

    def _measure(self, trial: Trial, column: str, alpha: float) -> pd.DataFrame:
        found = self.judge.accuracies(trial.weights(alpha), lambda: trial.state(alpha), trial.tasks)
        known = self.models.loc[list(trial.tasks)]
        base, tuned = known["base_accuracy"].to_numpy(), known["finetuned_accuracy"].to_numpy()
        merged = np.array([found[task] for task in trial.tasks])
        table = pd.DataFrame(
            {
                "alpha": alpha,
                "task": list(trial.tasks),
                "accuracy": merged,
                "base_accuracy": base,
                "finetuned_accuracy": tuned,
                "norm_accuracy": _ratios(merged, tuned),
                "kept_gain": _ratios(merged - base, tuned - base),
            }
        )
        if self.judge.subset is not None:
            table = table.assign(**self._variances(trial, alpha))
        return _labelled(table, trial, column)

    def _variances(self, trial: Trial, alpha: float) -> dict[str, list[float]]:
        """Estimate how far accuracies on part of the images may be off."""
        merged = self.judge.hits(trial.weights(alpha), lambda: trial.state(alpha), trial.tasks)
        tuned = {
            task: self.judge.hits(*_tuned(self.task_vectors, task), (task,))[task] for task in trial.tasks
        }
        return {
            "accuracy_variance": [accuracy_variance(merged[task]) for task in trial.tasks],
            "norm_accuracy_variance": [ratio_variance(merged[task], tuned[task]) for task in trial.tasks],
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


def given_alpha(alpha: float | str, trial: Trial) -> tuple[float, str]:
    """Turn a scale that needs no tuning, a number or "own", into a number; and say where it comes from."""
    if isinstance(alpha, str):
        return fixed_alpha(trial.method, trial.task_vectors), "the method's own"
    return float(alpha), "given for all methods"


def pair_table(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Arrange the outcomes of pairs as one row a pair.

    Columns, for each method m: `acc_m` and `norm_acc_m` (merged accuracy over the fine-tuned model's own), the
    means over the pair's two tasks; `kept_gain_m`, the mean of (merged − base)/(fine-tuned − base), how much of
    what fine-tuning gained survives (NaN where it gained nothing); `alpha_m`, the scale; each task's own
    accuracies with `_a` and `_b`; and, where only part of the images was looked at, the 95 % confidence intervals
    `low_acc_m`, `high_acc_m`, `low_norm_acc_m` and `high_norm_acc_m`.

    Returns:
        A table indexed by (task_a, task_b).
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for (_, method), group in accuracies.groupby(["tasks", "method"], sort=False):
        row = rows.setdefault(tuple(group["task"]), {})
        row[f"acc_{method}"] = group["accuracy"].mean()
        row[f"norm_acc_{method}"] = group["norm_accuracy"].mean(skipna=False)
        row[f"kept_gain_{method}"] = group["kept_gain"].mean(skipna=False)
        for side, (_, of_task) in zip("ab", group.iterrows(), strict=True):
            row[f"acc_{method}_{side}"] = of_task["accuracy"]
            row[f"norm_acc_{method}_{side}"] = of_task["norm_accuracy"]
        row |= _intervals(group, str(method))
        row[f"alpha_{method}"] = group["alpha"].iloc[0]
    index = pd.MultiIndex.from_tuples(list(rows), names=["task_a", "task_b"])
    return pd.DataFrame(list(rows.values()), index=index)


def set_table(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Arrange outcomes as one row a set: `tasks`, `arity`, and for each method m the means over its tasks
    `acc_m`, `norm_acc_m` and `kept_gain_m`, the normalised accuracy of its worst task `worst_norm_acc_m`, and
    `alpha_m`.
    """  # noqa: D205
    rows: dict[str, dict[str, Any]] = {}
    for (tasks, method), group in accuracies.groupby(["tasks", "method"], sort=False):
        row = rows.setdefault(str(tasks), {"tasks": tasks, "arity": len(group)})
        row[f"acc_{method}"] = group["accuracy"].mean()
        row[f"norm_acc_{method}"] = group["norm_accuracy"].mean(skipna=False)
        row[f"worst_norm_acc_{method}"] = group["norm_accuracy"].min()
        row[f"kept_gain_{method}"] = group["kept_gain"].mean(skipna=False)
        row |= _intervals(group, str(method))
        row[f"alpha_{method}"] = group["alpha"].iloc[0]
    return pd.DataFrame(list(rows.values()))


def _intervals(group: pd.DataFrame, method: str) -> dict[str, float]:
    """Return the confidence intervals of a merge's means, where only part of the images was looked at."""
    found = {}
    for target, name in (("acc", "accuracy"), ("norm_acc", "norm_accuracy")):
        if f"{name}_variance" in group and group[f"{name}_variance"].notna().all():
            low, high = mean_interval(group[name].tolist(), group[f"{name}_variance"].tolist())
            found |= {f"low_{target}_{method}": low, f"high_{target}_{method}": high}
    return found


def _labelled(table: pd.DataFrame, trial: Trial, column: str) -> pd.DataFrame:
    labels = {"tasks": "+".join(trial.tasks), "arity": len(trial.tasks), "method": column}
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
