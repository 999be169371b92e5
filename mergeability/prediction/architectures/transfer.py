"""Fit predictors on the merges of one architecture, and apply them to the merges of another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.analyses import (
    TARGET,
    Analysis,
    architectures_of,
    common_metrics,
    seeds_of,
    tasks_of,
)
from mergeability.prediction.architectures.resampling import Estimate, estimate
from mergeability.prediction.evidence import asked_columns, evidence_columns, with_own_evidence
from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.predictors.own_evidence import Functional, Known, Probe
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.protocols import BOTH_NEW, LeaveTwoTasksOut, Split
from mergeability.prediction.validation.scores import beyond_training_mean, pearson_r

PREDICTORS: dict[str, Predictor] = {
    "ridge": Ridge(),
    "known": Known(),
    "functional": Functional(),
    "probe": Probe(),
}
"""The predictors that are transferred, as in `conf/predictor`: fixed, to avoid selection bias."""

SCALED = "ridge_scaled"
"""Ridge on metrics in standard deviations of each architecture's own pairs, so that several new pairs are needed."""

TIERS = {
    "ridge": "the metrics as they are",
    SCALED: "the metrics relative to the architecture's other pairs",
    "known": "how well the base already does each task",
    "functional": "unlabelled images through the models",
    "probe": "unlabelled images through the merge itself",
}
"""Predictor → what it rests on, in words."""

WITHIN, OTHER_SEED, OTHER_ARCHITECTURE = "the same models", "another seed", "another architecture"
KINDS = (WITHIN, OTHER_SEED, OTHER_ARCHITECTURE)
"""Which models a fit predicts; always pairs of two tasks that it was not fitted on."""

Key = tuple[str, int]
"""An architecture and a seed."""

COLUMNS = [
    "models", "fitted_on", "predicts", "predictor", "rests_on", "r", "r_low", "r_high", "bias", "mae",
    "mae_of_mean", "n_pairs", "seeds",
]  # fmt: skip
_MARK = "\x1f"


@dataclass(frozen=True)
class AcrossTables:
    """Train on one table and validate on another; the training pairs share no task with the pair to predict.

    The tasks of both tables carry the prefixes of `named`. Where both tables have the same tasks, a fit would otherwise
    predict pairs whose outcomes it knows from the other architecture. Without pairs of the second table, as in the
    training rows of a fold, folds are those of `LeaveTwoTasksOut`.

    Examples:
        >>> from mergeability.prediction.architectures.transfer import AcrossTables, named
        >>> fitted, new = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")], [("a", "b"), ("x", "y")]
        >>> pairs = [*((named(0, a), named(0, b)) for a, b in fitted), *((named(1, a), named(1, b)) for a, b in new)]
        >>> [(fold.training.tolist(), fold.validation.tolist()) for fold in AcrossTables().folds(pairs)]
        [([3], [4]), ([0, 1, 2, 3], [5])]
    """

    name: ClassVar[str] = "transfer"
    situation: ClassVar[str] = BOTH_NEW
    many: ClassVar[bool] = True

    def folds(self, groups: Any) -> Iterator[Split]:
        """Yield the folds; new pairs that have the same training pairs are in the same fold.

        The training pairs of a new pair are all fitted pairs that share no task with the new pair.
        """
        ends = np.asarray(groups, dtype=object).reshape(-1, 2)
        new = np.array([str(a).startswith(f"1{_MARK}") for a in ends[:, 0]], dtype=bool)
        if not new.any():
            yield from LeaveTwoTasksOut().folds(groups)
            return
        plain = np.array([[plain_name(name) for name in pair] for pair in ends.tolist()], dtype=object)
        fitted = np.flatnonzero(~new)
        by_training: dict[bytes, tuple[np.ndarray, list[int]]] = {}
        for row in np.flatnonzero(new):
            apart = ~np.isin(plain[fitted], list(plain[row])).any(axis=1)
            training = fitted[apart]
            by_training.setdefault(training.tobytes(), (training, []))[1].append(int(row))
        for training, rows in by_training.values():
            if len(training):
                label = tuple(dict.fromkeys(str(name) for row in rows for name in plain[row]))
                yield Split(label, training, np.array(rows))


def named(table: int, task: str) -> str:
    """Return a task name that is unique across two tables: the one used for fitting (`table` = 0) and the new one (1).

    Examples:
        >>> from mergeability.prediction.architectures.transfer import named, plain_name
        >>> plain_name(named(1, "digits"))
        'digits'
    """
    return f"{table}{_MARK}{task}"


def plain_name(name: str) -> str:
    """Return the name of a task without the prefix that `named` adds."""
    return name.split(_MARK, 1)[1]


def transferred(fitted: Analysis, new: Analysis) -> pd.DataFrame:
    """Predict each pair of `new` by a fit on those pairs of `fitted` that share no task with the predicted pair.

    Metrics are those that both analyses have for all pairs; ridge chooses its strength by leaving two tasks out among
    the pairs it is fitted on.

    Args:
        fitted: the analysis with known outcomes.
        new: the analysis whose outcomes are predicted.

    Returns:
        One row per predictor, method and pair of `new`: `predictor`, `method`, `task_a`, `task_b`, `measured`,
        `predicted`, `training_mean`. Methods that one analysis lacks have no row.
    """
    methods = [name for name in new.methods if name in fitted.methods]
    metrics = common_metrics([fitted, new])
    own, others = with_own_evidence(PREDICTORS)
    also = evidence_columns(own.values(), [TARGET], methods)
    frames = [_kept(one, place, metrics, methods, also) for place, one in enumerate((fitted, new))]
    parts = []
    if metrics and methods:
        both = pd.concat(frames, ignore_index=True)
        parts.append(_predictions(both, metrics, others, methods))
        scaled = pd.concat([_scaled(one, metrics) for one in frames], ignore_index=True)
        parts.append(_predictions(scaled, metrics, {SCALED: PREDICTORS["ridge"]}, methods))
    parts += _own_evidence(frames, own, also, methods)
    keys = ["predictor", "method", "task_a", "task_b", "measured", "predicted", "training_mean"]
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=keys)
    return found[keys]


@dataclass(frozen=True)
class Transfers:
    """Hold predictions for the pairs of each analysis; the predictors were fitted on this or another analysis.

    Attributes:
        analyses: the pair tables.
        tables: (architecture, seed) fitted on, (architecture, seed) predicted → the result of `transferred`.
    """

    analyses: Sequence[Analysis]
    tables: Mapping[tuple[Key, Key], pd.DataFrame]
    _memory: dict = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        analyses: Sequence[Analysis],
        predictions: Callable[[Analysis, Analysis], pd.DataFrame] = transferred,
    ) -> "Transfers":
        """Predict within each analysis, from seed to seed, and from architecture to architecture with the same seed.

        Args:
            analyses: the pair tables.
            predictions: returns the result of `transferred`, possibly from a store.
        """
        found = {
            ((a.architecture, a.seed), (b.architecture, b.seed)): predictions(a, b)
            for a in analyses
            for b in analyses
            if a.architecture == b.architecture or a.seed == b.seed
        }
        return cls(analyses, found)

    def table(self) -> pd.DataFrame:
        """Score every kind of transfer, from each architecture to itself and to every other architecture.

        Returns:
            One row per `models` (`KINDS`), `fitted_on`, `predicts` and predictor: `r`, the correlation beyond the
            training mean for pairs of two new tasks (0 if nothing is predicted beyond it), a mean over methods and
            seeds with its interval over tasks and seeds; `bias` and `mae`, predicted - measured and its absolute value
            in outcome units, `mae_of_mean` that of the mean of the pairs fitted on; `n_pairs`; `seeds`, their number.
        """
        names = architectures_of(self.analyses)
        rows = []
        for kind in KINDS:
            for a in names:
                for b in names:
                    chosen = [one for one in self._couples(kind) if (one[0][0], one[1][0]) == (a, b)]
                    rows += self._scored(kind, a, b, chosen) if chosen else []
        return pd.DataFrame(rows, columns=COLUMNS)

    def mean(self, kind: str, predictor: str, same_tasks: bool | None = None) -> Estimate:
        """Average r over all methods and pairs of analyses for one kind of transfer; the result includes an interval.

        Args:
            kind: of `KINDS`.
            predictor: its name.
            same_tasks: True: only analyses with the same tasks; False: only with different tasks; None: all.
        """
        tasks = {(one.architecture, one.seed): one.tasks for one in self.analyses}
        chosen = [
            (a, b)
            for a, b in self._couples(kind)
            if same_tasks is None or (tasks[a] == tasks[b]) == same_tasks
        ]
        return self._mean(chosen, predictor)

    def _couples(self, kind: str) -> list[tuple[Key, Key]]:
        return [(a, b) for a, b in self.tables if _kind(a, b) == kind]

    def _mean(self, chosen: Sequence[tuple[Key, Key]], predictor: str) -> Estimate:
        used = {key for couple in chosen for key in couple}
        tables = [one for one in self.analyses if (one.architecture, one.seed) in used]
        own = [(couple, self._rows(couple, predictor)) for couple in chosen]

        def statistic(task: str | None, seed: int | None) -> float:
            found = [
                r
                for (a, b), rows in own
                if seed is None or seed not in (a[1], b[1])
                for r in rows.correlations(task)
            ]
            return float(np.mean(found)) if found else float("nan")

        return estimate(statistic, tasks_of(tables), seeds_of(tables))

    def _rows(self, couple: tuple[Key, Key], predictor: str) -> "_Rows":
        if (couple, predictor) not in self._memory:
            table = self.tables[couple]
            self._memory[couple, predictor] = _Rows(table[table["predictor"] == predictor])
        return self._memory[couple, predictor]

    def _scored(self, kind: str, a: str, b: str, chosen: Sequence[tuple[Key, Key]]) -> list[dict[str, Any]]:
        whole = pd.concat([self.tables[couple] for couple in chosen], ignore_index=True)
        rows = []
        for predictor, rests_on in TIERS.items():
            own = whole[whole["predictor"] == predictor]
            if own.empty:
                continue
            off = own["predicted"] - own["measured"]
            rows.append(
                {
                    "models": kind,
                    "fitted_on": a,
                    "predicts": b,
                    "predictor": predictor,
                    "rests_on": rests_on,
                    **self._mean(chosen, predictor).columns("r"),
                    "bias": float(off.mean()),
                    "mae": float(off.abs().mean()),
                    "mae_of_mean": float((own["training_mean"] - own["measured"]).abs().mean()),
                    "n_pairs": len(own[["task_a", "task_b"]].drop_duplicates()),
                    "seeds": len({seed for couple in chosen for _, seed in couple}),
                }
            )
        return rows


def _kind(fitted: Key, new: Key) -> str:
    if fitted == new:
        return WITHIN
    return OTHER_SEED if fitted[0] == new[0] else OTHER_ARCHITECTURE


class _Rows:
    """The predictions of one predictor and pair of analyses, as arrays by method."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._memory: dict[str | None, list[float]] = {}
        self._methods = []
        for _, rows in table.groupby("method", sort=False):
            numbers = [
                rows[name].to_numpy(dtype=float) for name in ("predicted", "measured", "training_mean")
            ]
            predicted, measured = beyond_training_mean(*numbers)
            self._methods.append((predicted, measured, rows[["task_a", "task_b"]].to_numpy(dtype=object)))

    def correlations(self, without: str | None) -> list[float]:
        """Return each method's correlation between predictions and outcomes, without the pairs of a given task.

        Undefined correlations become 0.
        """
        if without not in self._memory:
            found = []
            for predicted, measured, ends in self._methods:
                kept = (ends != without).all(axis=1)
                found.append(float(np.nan_to_num(pearson_r(predicted[kept], measured[kept]))))
            self._memory[without] = found
        return self._memory[without]


def _kept(
    analysis: Analysis, place: int, metrics: Sequence[str], methods: Sequence[str], also: Sequence[str]
) -> pd.DataFrame:
    outcomes = [f"{TARGET}_{method}" for method in methods]
    names = [*metrics, *outcomes, *(name for name in also if name not in metrics)]
    frame = analysis.pairs[[name for name in names if name in analysis.pairs]].copy()
    for end in ("task_a", "task_b"):
        frame[end] = [named(place, task) for task in analysis.pairs[end]]
    return frame


def _scaled(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    values = frame[list(metrics)]
    spread = values.std(ddof=0)
    scaled = frame.copy()
    scaled[list(metrics)] = (values - values.mean()) / spread.where(spread > 0, 1.0)
    return scaled


def _predictions(
    frame: pd.DataFrame,
    columns: Sequence[str],
    predictors: Mapping[str, Predictor],
    methods: Sequence[str],
) -> pd.DataFrame:
    """Predict the new pairs, whose tasks get back their own names."""
    result = evaluate_predictors(frame, columns, predictors, methods, [TARGET], [AcrossTables()])
    rows = result.predictions
    return rows.assign(**{end: [plain_name(str(name)) for name in rows[end]] for end in ("task_a", "task_b")})


def _own_evidence(
    frames: Sequence[pd.DataFrame],
    predictors: Mapping[str, Predictor],
    also: Sequence[str],
    methods: Sequence[str],
) -> list[pd.DataFrame]:
    """Predict by the predictors with columns of their own, where both tables have these columns."""
    shared = [name for name in also if all(name in frame and frame[name].notna().any() for frame in frames)]
    outcomes = [f"{TARGET}_{method}" for method in methods]
    if not shared or not methods:
        return []
    both = pd.concat([frame[["task_a", "task_b", *shared, *outcomes]] for frame in frames], ignore_index=True)
    table = PairTable.of(both, shared, methods, [TARGET])
    found = []
    for name, predictor in predictors.items():
        asked, _ = asked_columns(name, predictor, table, methods, [TARGET])
        for (_, columns), own in asked.items():
            found.append(_predictions(both, columns, {name: predictor}, own))
    return found
