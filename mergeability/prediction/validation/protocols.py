"""Define cross-validation splitters for tables of task pairs; scikit-learn can use these splitters.

A pair belongs to two tasks at once, so ordinary cross-validation would leave both of a pair's tasks in the training
rows. `groups` are the pairs themselves, an (n, 2) array of task names:

>>> from sklearn.linear_model import LinearRegression
>>> from sklearn.model_selection import cross_val_predict, cross_val_score
>>> pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
>>> X = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]
>>> cross_val_score(LinearRegression(), X, [0, 1, 2, 3, 4, 5], groups=pairs, cv=LeaveOneTaskOut()).round(6)
array([1., 1., 1., 1.])
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mergeability.errors import UserError
from mergeability.prediction.pair_table import task_order
from mergeability.prediction.predictors.arrays import InnerFold
from mergeability.prediction.predictors.pair_folds import PairFolds

KNOWN_PARTNER, BOTH_NEW = "known partner", "both new"
"""Whether the training pairs contain one of the two tasks of a validated pair, or neither of the two tasks."""


@dataclass(frozen=True)
class Split:
    """Hold the left-out tasks, the training rows and the validation rows of one fold.

    Attributes:
        held_out: the tasks whose pairs are validated.
        training: indices of the training rows.
        validation: indices of the validation rows.
    """

    held_out: tuple[str, ...]
    training: Int[np.ndarray, " training"]
    validation: Int[np.ndarray, " validation"]

    @property
    def label(self) -> str:
        """Return the name of the fold, which consists of the names of its left-out tasks."""
        return "+".join(self.held_out)


@runtime_checkable
class SplitProtocol(Protocol):
    """Define the interface of protocols that split pairs into named folds.

    Attributes:
        name: as in `prediction.json`.
        situation: description of whether validated tasks occur in the training pairs.
        many: whether there are so many folds that only closed-form predictors are fitted.
    """

    name: ClassVar[str]
    situation: ClassVar[str]
    many: ClassVar[bool]

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield the folds of the pairs."""
        ...


class _Splitter(ABC):
    """Provide the interface of scikit-learn's splitters."""

    @abstractmethod
    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield the folds of the pairs."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[InnerFold]:
        """Yield the training and validation rows of each fold; `groups` contains the pairs of tasks."""
        if groups is None:
            raise UserError(
                "Splitting requires the pairs of tasks. Pass groups=<array of shape (n, 2) with task names>."
            )
        for fold in self.folds(groups):
            yield fold.training, fold.validation

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Count the folds."""
        return sum(1 for _ in self.split(X, y, groups))


@dataclass(frozen=True)
class LeaveOneTaskOut(_Splitter):
    """Create one fold per task: train on the pairs without the task, validate on the pairs with the task.

    With all pairs of T tasks, each fold has (T-1)(T-2)/2 training and T-1 validation pairs (171 and 19 for T = 20). A
    fold without validation or training rows is skipped.

    Examples:
        >>> from mergeability.prediction import LeaveOneTaskOut
        >>> pairs = [("a", "b"), ("a", "c"), ("b", "c")]
        >>> [(fold.label, fold.training.tolist()) for fold in LeaveOneTaskOut().folds(pairs)]
        [('a', [2]), ('b', [1]), ('c', [0])]
    """

    name: ClassVar[str] = "loto"
    situation: ClassVar[str] = KNOWN_PARTNER
    many: ClassVar[bool] = False

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield one fold per task, in the order in which the table lists the tasks."""
        tasks, ends = _ends(groups)
        for index, task in enumerate(tasks):
            held_out = (ends == index).any(axis=1)
            if not held_out.all():
                yield Split((task,), np.flatnonzero(~held_out), np.flatnonzero(held_out))


@dataclass(frozen=True)
class LeaveTwoTasksOut(_Splitter):
    """Create one fold per pair: validate on the pair, train on the pairs that contain neither of its tasks.

    With all pairs of T tasks, each fold has (T-2)(T-3)/2 training pairs (153 for T = 20). This is the test for two
    models that were never merged before. A single pair has no correlation, so the predictions of all folds are pooled.

    Examples:
        >>> from mergeability.prediction import LeaveTwoTasksOut
        >>> pairs = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
        >>> [(fold.label, fold.training.tolist()) for fold in LeaveTwoTasksOut().folds(pairs)]
        [('a+b', [3]), ('a+c', [2]), ('b+d', [1]), ('c+d', [0])]
    """

    name: ClassVar[str] = "l2to"
    situation: ClassVar[str] = BOTH_NEW
    many: ClassVar[bool] = True

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield one fold per pair, in the order in which the table lists the pairs."""
        tasks, ends = _ends(groups)
        for training, validation in PairFolds(ends):
            a, b = ends[validation[0]]
            yield Split((tasks[a], tasks[b]), training, validation)


@dataclass(frozen=True)
class DisjointHalves(_Splitter):
    """Train on the pairs within one random half of the tasks, and validate on the pairs within the other half.

    With all pairs of an even number T of tasks, each fold has T/2·(T/2-1)/2 training and as many validation pairs (45
    for T = 20); pairs with a task in each half are left out.

    Attributes:
        repeats: number of random halvings.
        seed: seed of the halvings.

    Examples:
        >>> from itertools import combinations
        >>> from mergeability.prediction import DisjointHalves
        >>> folds = list(DisjointHalves(repeats=3).folds(list(combinations("abcdef", 2))))
        >>> [(len(fold.held_out), len(fold.training), len(fold.validation)) for fold in folds]
        [(3, 3, 3), (3, 3, 3), (3, 3, 3)]
    """

    repeats: int = 20
    seed: int = 0
    name: ClassVar[str] = "halves"
    situation: ClassVar[str] = BOTH_NEW
    many: ClassVar[bool] = False

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield one fold for each random split that has pairs in both halves."""
        tasks, ends = _ends(groups)
        generator = np.random.default_rng(self.seed)
        for _ in range(self.repeats):
            first = generator.permutation(len(tasks)) < len(tasks) // 2
            inside = first[ends]
            training, validation = np.flatnonzero(inside.all(axis=1)), np.flatnonzero(~inside.any(axis=1))
            if len(training) and len(validation):
                held_out = tuple(task for task, fitted in zip(tasks, first, strict=True) if not fitted)
                yield Split(held_out, training, validation)


@dataclass(frozen=True)
class AcrossGroups(_Splitter):
    """Create a single fold: train on the pairs within one group of tasks, validate on those within another group.

    Pairs across the groups are left out. If no pair is within the other group, as in the training rows of that
    fold, the folds are those of `LeaveTwoTasksOut` among the pairs within the first group, so that strengths are chosen
    in the same way. It is not in `PROTOCOLS`, because it requires the groups.

    Attributes:
        fitted: the tasks of the training pairs.
        validated: the tasks of the predicted pairs, disjoint from `fitted`.

    Examples:
        >>> pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "x"), ("x", "y")]
        >>> [(fold.training.tolist(), fold.validation.tolist()) for fold in AcrossGroups("abc", "xy").folds(pairs)]
        [([0, 1, 2], [4])]
    """

    fitted: Sequence[str]
    validated: Sequence[str]
    name: ClassVar[str] = "across"
    situation: ClassVar[str] = BOTH_NEW
    many: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shared = sorted(set(self.fitted) & set(self.validated))
        if shared:
            raise UserError(
                f"Expected disjoint groups of training and new tasks: {', '.join(shared)} is in both groups."
            )

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield the fold whose training rows are one group and whose validation rows are the other.

        If all pairs are within the first group, yield its leave-two-tasks-out folds instead.
        """
        ends = np.asarray(groups, dtype=object).reshape(-1, 2)
        training, validation = (
            np.flatnonzero(np.isin(ends, list(tasks)).all(axis=1)) for tasks in (self.fitted, self.validated)
        )
        if len(training) and len(validation):
            yield Split(tuple(self.validated), training, validation)
        elif len(training) == len(ends):
            yield from LeaveTwoTasksOut().folds(groups)


PROTOCOLS: dict[str, type[LeaveOneTaskOut] | type[LeaveTwoTasksOut] | type[DisjointHalves]] = {
    protocol.name: protocol for protocol in (LeaveOneTaskOut, LeaveTwoTasksOut, DisjointHalves)
}


def inner_folds(protocol: SplitProtocol, groups: Any) -> Sequence[InnerFold]:
    """Return the training rows and validation rows of each fold of a protocol.

    Folds of leaving two tasks out are made one at a time: together, their rows take memory in proportion to T⁴ for T
    tasks.

    Args:
        protocol: the splitter.
        groups: the two tasks of each pair, (n, 2).

    Returns:
        Training and validation rows of each fold.
    """
    if isinstance(protocol, LeaveTwoTasksOut):
        return PairFolds(_ends(groups)[1])
    return [(fold.training, fold.validation) for fold in protocol.folds(groups)]


def named_protocols(names: Sequence[str]) -> list[SplitProtocol]:
    """Return the protocols with the given names.

    Args:
        names: `loto`, `l2to` or `halves`.

    Returns:
        One protocol per distinct name.

    Raises:
        UserError: there is no name, or an unknown one.
    """
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise UserError(
            f"Expected protocols among {', '.join(PROTOCOLS)}, got {', '.join(map(str, unknown)) or 'none'}."
        )
    return [PROTOCOLS[name]() for name in dict.fromkeys(names)]


def _ends(groups: Any) -> tuple[tuple[str, ...], Int[np.ndarray, "n 2"]]:
    """Number the tasks of each pair."""
    ends = np.asarray(groups, dtype=object)
    if ends.ndim != 2 or ends.shape[1] != 2:
        raise UserError(f"Expected an array of shape (n, 2) with task names, got shape {ends.shape}.")
    tasks = task_order(ends)
    index = {task: i for i, task in enumerate(tasks)}
    return tasks, np.array([[index[a], index[b]] for a, b in ends.tolist()], dtype=int).reshape(-1, 2)
