"""Create the folds of every outcome, and scale metrics by the training rows of each fold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import clone

from mergeability.errors import UserError
from mergeability.prediction.pair_table import PairRows, PairTable, summarise_names
from mergeability.prediction.predictors.arrays import InnerFold, Problem
from mergeability.prediction.predictors.base import BatchPredictor, Predictor, Traits, traits
from mergeability.prediction.predictors.scaling import RangeScaler
from mergeability.prediction.validation.protocols import Split, SplitProtocol, inner_folds

TASK_PREFIX = "task="
"""Coefficients of task effects carry this prefix, so that no metric's name can collide with a task's."""


class FoldRows:
    """Hold the rows of one fold, with metrics scaled by their ranges in the training rows.

    Rows and inner folds are computed on access: for all folds that leave out two of T tasks, they would
    take memory in proportion to T⁶.
    """

    def __init__(self, rows: PairRows, split: Split, protocol: SplitProtocol) -> None:
        self.rows, self.split, self.protocol = rows, split, protocol
        # The table was checked before, once for all folds.
        self._scaler = RangeScaler().fit_checked(rows.features[split.training])
        self.constant = tuple(
            name for name, flat in zip(rows.metrics, self._scaler.constant_, strict=True) if flat
        )

    @property
    def inner(self) -> Sequence[InnerFold]:
        """The inner folds: the same protocol applied to the training rows."""
        return inner_folds(self.protocol, self.rows.ends[self.split.training])

    def features(self, inputs: str) -> Float[np.ndarray, "n q"]:
        """Return a predictor's inputs for all rows: scaled or raw metrics, incidence columns of tasks, or both."""
        choices: dict[str, Callable[[], list[np.ndarray]]] = {
            "metrics": lambda: [self._scaled()],
            "raw": lambda: [self.rows.features],
            "tasks": lambda: [self.rows.incidence],
            "both": lambda: [self._scaled(), self.rows.incidence],
        }
        if inputs not in choices:
            raise UserError(
                f"Expected the attribute `inputs` of a predictor to be one of {', '.join(choices)}, got {inputs!r}."
            )
        return np.hstack(choices[inputs]())

    def training_features(self, inputs: str) -> Float[np.ndarray, "training q"]:
        """Return `features` of the training rows."""
        return self.features(inputs)[self.split.training]

    def _scaled(self) -> Float[np.ndarray, "n m"]:
        return self._scaler.transform_checked(self.rows.features)


@dataclass(frozen=True)
class Fold:
    """Hold one fold for the outcomes of one method and one target."""

    method: str
    target: str
    shared: FoldRows
    outcome: Float[np.ndarray, " n"]

    @property
    def split(self) -> Split:
        """The left-out tasks, the training rows and the validation rows."""
        return self.shared.split

    @property
    def training_outcome(self) -> Float[np.ndarray, " training"]:
        """The outcomes of the training rows."""
        return self.outcome[self.split.training]

    def feature_names(self, inputs: str) -> list[str]:
        """Return the names of the columns of `features`."""
        rows = self.shared.rows
        tasks = [f"{TASK_PREFIX}{task}" for task in rows.tasks]
        metrics = list(rows.metrics)
        return {"metrics": metrics, "raw": metrics, "tasks": tasks, "both": [*metrics, *tasks]}[inputs]


@dataclass
class Folds:
    """Hold all folds of a protocol, and notes about excluded pairs."""

    folds: list[Fold] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_folds(
    table: PairTable,
    methods: Sequence[str],
    targets: Sequence[str],
    protocol: SplitProtocol,
    complete: bool = False,
) -> Folds:
    """Create the folds of every outcome; outcomes that are known for the same pairs share folds.

    Args:
        table: the pairs.
        methods: merge methods.
        targets: outcomes of each method, `norm_acc` or `acc`.
        protocol: the splitter.
        complete: whether only pairs with an outcome for every method are used.

    Returns:
        The folds, and notes on pairs left out.
    """
    made = Folds()
    shared: dict[bytes, list[FoldRows]] = {}
    left_out_by: dict[tuple[str, ...], list[str]] = {}
    constant_in: dict[str, set[str]] = {}
    for target in targets:
        outcomes = {method: f"{target}_{method}" for method in methods}
        outcomes = {method: name for method, name in outcomes.items() if name in table.frame.columns}
        for method, outcome in outcomes.items():
            rows, left_out = table.rows(outcome, list(outcomes.values()) if complete else ())
            if left_out:
                left_out_by.setdefault(tuple(left_out), []).append(outcome)
            key = table.usable(outcome, list(outcomes.values()) if complete else ()).tobytes()
            if key not in shared:
                shared[key] = [FoldRows(rows, split, protocol) for split in protocol.folds(rows.ends)]
            if not shared[key]:
                made.notes.append(
                    f"{outcome}: no fold can be formed from {len(rows.outcome)} usable pairs, so nothing was"
                    " predicted."
                )
            for fold in shared[key]:
                for metric in fold.constant:
                    constant_in.setdefault(metric, set()).add(fold.split.label)
            made.folds += [Fold(method, target, fold, rows.outcome) for fold in shared[key]]
    made.notes += _left_out_notes(left_out_by) + _constant_notes(constant_in)
    return made


def _left_out_notes(left_out_by: dict[tuple[str, ...], list[str]]) -> list[str]:
    return [
        f"{summarise_names(outcomes)}: {len(pairs)} pair{'s' if len(pairs) > 1 else ''} left out for an empty cell "
        f"({summarise_names(pairs)})."
        for pairs, outcomes in left_out_by.items()
    ]


def _constant_notes(constant_in: dict[str, set[str]]) -> list[str]:
    return [
        f"{metric} is constant where {summarise_names(sorted(labels))} is held out and has weight 0 there."
        for metric, labels in constant_in.items()
    ]


def fit_folds(predictor: Predictor, folds: Sequence[Fold]) -> list[Predictor]:
    """Fit a predictor to the training rows of every fold.

    A predictor that searches all folds at once receives all of them. Any other predictor receives one set of training
    rows at a time, with every outcome known for them, so that only one such set is in memory.

    Args:
        predictor: the regressor.
        folds: folds of one protocol.

    Returns:
        One fitted copy per fold.
    """
    own = traits(predictor)
    batched = isinstance(predictor, BatchPredictor)
    groups = [list(range(len(folds)))] if batched and not own.closed_form else _with_the_same_rows(folds)
    fitted: dict[int, Predictor] = {}
    for group in groups:
        members = [folds[index] for index in group]
        problems = _problems(members, own)
        # With "both", the last columns are the task columns.
        tasks = {"tasks": len(members[0].shared.rows.tasks)} if own.inputs == "both" else {}
        if isinstance(predictor, BatchPredictor):
            models = predictor.fit_many(problems, **tasks)
        else:
            models = [_fit_one(predictor, problem, own, tasks) for problem in problems]
        fitted.update(zip(group, models, strict=True))
    return [fitted[index] for index in range(len(folds))]


def _with_the_same_rows(folds: Sequence[Fold]) -> list[list[int]]:
    """Group the indices of folds that differ in their outcomes only."""
    groups: dict[int, list[int]] = {}
    for index, fold in enumerate(folds):
        groups.setdefault(id(fold.shared), []).append(index)
    return list(groups.values())


def _problems(folds: Sequence[Fold], own: Traits) -> list[Problem]:
    """Return the training rows of folds; folds with the same rows share one array and one list of inner folds."""
    rows: dict[int, tuple[np.ndarray, Sequence[InnerFold] | None]] = {}
    for fold in folds:
        shared = fold.shared
        if id(shared) not in rows:
            rows[id(shared)] = shared.training_features(own.inputs), shared.inner if own.nested else None
    return [(rows[id(fold.shared)][0], fold.training_outcome, rows[id(fold.shared)][1]) for fold in folds]


def _fit_one(predictor: Predictor, problem: Problem, own: Traits, tasks: dict[str, int]) -> Predictor:
    X, y, inner = problem
    model: Any = clone(predictor)  # type: ignore[arg-type]
    return model.fit(X, y, **({"folds": inner} if own.nested else {}), **tasks)
