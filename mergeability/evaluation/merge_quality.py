"""How good a merge is: its accuracy on each of its tasks, beside that of the models it was made of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mergeability.errors import UserError
from mergeability.evaluation.accuracy import Judge
from mergeability.merging.merger import apply
from mergeability.profiles.workers import Progress
from mergeability.task_vectors import TaskVectors

Merger = Callable[[TaskVectors], dict[str, Tensor]]


def describe(merger: Any) -> Any:
    """Turn a merge method into a JSON-able record of its class and every option, nested methods included."""
    if dataclasses.is_dataclass(merger) and not isinstance(merger, type):
        options = {field.name: describe(getattr(merger, field.name)) for field in dataclasses.fields(merger)}
        return {"method": f"{type(merger).__module__}.{type(merger).__qualname__}", **options}
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
        own = task_vectors.hashes[task]
        tuned = judge.accuracies(
            {"file": own}, lambda task=task: task_vectors.model(task).state_dict(), (task,)
        )
        classes = len(judge.heads[task])
        rows[task] = {
            "classes": classes,
            "chance": 1 / classes,
            "base_accuracy": zero_shot[task],
            "finetuned_accuracy": tuned[task],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task")


def evaluate_pairs(
    task_vectors: TaskVectors,
    methods: Mapping[str, Merger],
    judge: Judge,
    models: pd.DataFrame,
    progress: Progress,
) -> pd.DataFrame:
    """Merge every pair by every method and measure the merge on both tasks.

    Columns, for each method m: `acc_m` and `norm_acc_m` (merged accuracy over the fine-tuned model's own), the
    means over the pair's two tasks; `kept_gain_m`, the mean of (merged − base)/(fine-tuned − base), how much of
    what fine-tuning gained survives (NaN where it gained nothing); and each task's own accuracies with `_a` and
    `_b`.

    Args:
        task_vectors: the models.
        methods: name → merge method.
        judge: measures accuracies.
        models: the table of `evaluate_models`.
        progress: wraps the loop over merges: (items, description, total) → the items.

    Returns:
        A table indexed by (task_a, task_b), in task order.
    """
    tasks = task_vectors.tasks
    pairs = [(a, b) for position, a in enumerate(tasks) for b in tasks[position + 1 :]]
    rows: dict[tuple[str, str], dict[str, float]] = {pair: {} for pair in pairs}
    merges = [(pair, name) for pair in pairs for name in methods]
    for pair, name in progress(merges, "merging and evaluating", len(merges)):
        accuracies = merged_accuracies(task_vectors.select(pair), methods[name], judge)
        rows[pair] |= _outcome(name, pair, accuracies, models)
    index = pd.MultiIndex.from_tuples(pairs, names=["task_a", "task_b"])
    return pd.DataFrame([rows[pair] for pair in pairs], index=index)


def merged_accuracies(task_vectors: TaskVectors, method: Any, judge: Judge) -> dict[str, float]:
    """Measure the merge of some models on each of their tasks; the merge is made only if that is not known."""
    weights = {
        "base": task_vectors.base_hash,
        # With their names: masks depend on them, and so does the order of every sum.
        "models": sorted(task_vectors.hashes.items()),
        "merge": describe(method),
        "alpha": float(method.alpha),
    }
    return judge.accuracies(
        weights,
        lambda: apply(_state_of_base(task_vectors), method(task_vectors), method.alpha),
        task_vectors.tasks,
    )


def _state_of_base(task_vectors: TaskVectors) -> dict[str, Tensor]:
    return task_vectors.base_checkpoint.state_dict()


def _outcome(
    method: str, pair: tuple[str, str], accuracies: Mapping[str, float], models: pd.DataFrame
) -> dict[str, float]:
    merged = np.array([accuracies[task] for task in pair])
    base = models.loc[list(pair), "base_accuracy"].to_numpy()
    tuned = models.loc[list(pair), "finetuned_accuracy"].to_numpy()
    normalised = _ratio(merged, tuned)
    gain = _ratio(merged - base, tuned - base)
    return {
        f"acc_{method}": merged.mean(),
        f"norm_acc_{method}": normalised.mean(),
        f"kept_gain_{method}": gain.mean(),
        f"acc_{method}_a": merged[0],
        f"acc_{method}_b": merged[1],
        f"norm_acc_{method}_a": normalised[0],
        f"norm_acc_{method}_b": normalised[1],
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where there is nothing to divide by."""
    known = denominator != 0
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=known)
