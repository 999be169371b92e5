"""Compare kinds of evidence on the same pairs, both within and between groups of tasks, and average over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.dummy import DummyRegressor

from mergeability.errors import UserError
from mergeability.prediction.evidence import (
    asked_columns,
    evidence_columns,
    joined,
    with_own_evidence,
)
from mergeability.prediction.pair_table import MIN_TASKS, TARGETS, PairTable, outcome_methods, summarise_names
from mergeability.prediction.predictors.additive import Additive
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.predictors.own_evidence import AdditiveProbe, Functional, Known, Probe
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.questions.evidence_costs import EVIDENCE
from mergeability.prediction.questions.method_choice import method_choice
from mergeability.prediction.validation.evaluate import PredictionResult, evaluate_predictors
from mergeability.prediction.validation.intervals import (
    conformal_table,
    student_interval,
    transferred_intervals,
)
from mergeability.prediction.validation.protocols import (
    KNOWN_PARTNER,
    AcrossGroups,
    LeaveOneTaskOut,
    LeaveTwoTasksOut,
    SplitProtocol,
)
from mergeability.prediction.validation.scores import (
    beyond_training_mean,
    jackknife_interval,
    mean_and_std,
    pearson_r,
)

PREDICTORS: dict[str, Predictor] = {
    "mean": DummyRegressor(),
    "additive": Additive(),
    "ridge": Ridge(),
    "known": Known(),
    "functional": Functional(),
    "probe": Probe(),
    "additive_probe": AdditiveProbe(),
}
"""The predictors that stand for kinds of evidence, as in `conf/predictor`: fixed, to avoid selection bias."""

KINDS: dict[str, tuple[str, str]] = {
    **EVIDENCE,
    "activation": ("no merge", "the activation metrics alone, by ridge"),
    "gradient": ("no merge", "the gradient metrics alone, by ridge"),
    "additive": ("earlier merges of the partner", "task effects"),
    "additive_probe": ("earlier merges of the partner, and a probe", "task effects and the probe"),
}
"""Predictor → its cost and what it rests on, in words."""

# For two new tasks, task effects are 0, so these predictors equal the training mean or the probe and are omitted.
_KNOWN_PARTNER_ONLY = ("additive", "additive_probe")

KEYS = ["group", "situation", "target", "predictor"]
_SCORES = [
    "bias", "mae", "half_width", "coverage", "level", "regret", "fixed_regret", "n_methods", "n_pairs",
]  # fmt: skip
COLUMNS = [
    *KEYS, "cost", "rests_on", "r", "r_low", "r_high", "seed_low", "seed_high", "seeds", *_SCORES,
]  # fmt: skip


@dataclass(frozen=True)
class EvidenceScores:
    """Hold the scores of every kind of evidence on one table of pairs.

    Attributes:
        scores: one row per group, situation, target and predictor: `r` and the columns listed in `compare_evidence`.
        without: `r` without the pairs of each `task` in turn, for intervals over tasks.
        notes: sentences about excluded pairs and predictors.
    """

    scores: pd.DataFrame
    without: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Population:
    """Pairs that are compared, and how they are split; `calibration` names the one whose intervals are used."""

    name: str
    tasks: tuple[tuple[str, ...], ...]
    protocols: tuple[SplitProtocol, ...]
    calibration: str | None = None

    def of(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Return the pairs whose two tasks belong to a given set of tasks."""
        inside = [pairs["task_a"].isin(own) & pairs["task_b"].isin(own) for own in self.tasks]
        return pairs[np.any(inside, axis=0)].reset_index(drop=True)


def compare_evidence(
    pairs: pd.DataFrame,
    metrics: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    families: Mapping[str, Sequence[str]],
    methods: Sequence[str] | None = None,
    targets: Sequence[str] = TARGETS,
) -> EvidenceScores:
    """Score every kind of evidence within each group of tasks, and from one group of tasks to another.

    Within a group, pairs are predicted by leaving two tasks out (*both new*, l2to) and one out (*known partner*, loto).
    "a to b" is fitted on the pairs within a and predicts the pairs within b (both new); pairs across are not used.

    Scores are means over methods. For both new, `r` is the correlation after each fold's training mean is subtracted
    from predictions and outcomes, 0 if predictions do not vary around that mean; for a known partner, it is the mean
    correlation over folds, NaN if it is undefined in all of them. `bias` is the mean of predicted − measured and `mae`
    the mean absolute error, in outcome units; the predictions of `probe` are its estimates themselves, without a fit.
    `half_width`, `coverage` and `level` are those of `conformal_table`; from one group to another, they are calibrated
    on the pairs of the first. `regret` is that of choosing the method by the predictor, `fixed_regret` that of always
    taking the best method on the training pairs.

    Args:
        pairs: one row per pair: metrics, columns of the predictors with their own evidence, outcomes.
        metrics: the columns for ridge.
        groups: name → tasks; unknown tasks are ignored, and so are groups of fewer than four tasks.
        families: name → metrics for a separate ridge.
        methods: merge methods; those the table has outcomes of when None.
        targets: targets of each method.

    Raises:
        UserError: the table has no outcome, or no group has four tasks.
    """
    methods = outcome_methods(pairs, targets) if methods is None else list(methods)
    if not methods:
        raise UserError(
            "A comparison of evidence requires outcomes of merges, but this table contains none. Set merge=…."
        )
    populations, notes = _populations(pairs, groups)
    rows, without, found = [], [], {}
    for one in populations:
        own = one.of(pairs)
        result = PredictionResult()
        for protocol in one.protocols:
            result = joined(result, _evaluate(own, metrics, families, methods, targets, protocol))
        found[one.name] = result
        notes += [note for note in result.notes if note not in notes]
        calibration = found[one.calibration].of("l2to").predictions if one.calibration is not None else None
        scores, tasks = _scored(result, one, calibration)
        rows.append(scores)
        without.append(tasks)
    return EvidenceScores(
        pd.concat(rows, ignore_index=True), pd.concat(without, ignore_index=True), tuple(notes)
    )


def _populations(
    pairs: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> tuple[list[_Population], list[str]]:
    present = set(pairs["task_a"]) | set(pairs["task_b"])
    tasks = {name: tuple(task for task in members if task in present) for name, members in groups.items()}
    used = {name: members for name, members in tasks.items() if len(members) >= MIN_TASKS}
    if not used:
        raise UserError(
            f"Expected at least {MIN_TASKS} tasks in one group, got {summarise_names(sorted(present))} for"
            f" the groups {', '.join(groups) or 'none'}. Set the tasks of each group in task_groups=…."
        )
    notes = [
        f"Group {name} is left out: {len(tasks[name])} of its tasks are in the table, and {MIN_TASKS} are needed."
        for name in groups
        if name not in used
    ]
    within = (LeaveTwoTasksOut(), LeaveOneTaskOut())
    found = [_Population(name, (members,), within) for name, members in used.items()]
    if len(used) > 1:
        found += [
            _Population(f"{a} to {b}", (used[a], used[b]), (AcrossGroups(used[a], used[b]),), a)
            for a, b in permutations(used, 2)
        ]
    return found, notes


def _evaluate(
    pairs: pd.DataFrame,
    metrics: Sequence[str],
    families: Mapping[str, Sequence[str]],
    methods: Sequence[str],
    targets: Sequence[str],
    protocol: SplitProtocol,
) -> PredictionResult:
    """Fit every predictor to the pairs that have all metrics."""
    protocols = [protocol]
    left_out = () if protocol.situation == KNOWN_PARTNER else _KNOWN_PARTNER_ONLY
    own, others = with_own_evidence({name: one for name, one in PREDICTORS.items() if name not in left_out})
    also = evidence_columns(own.values(), targets, methods)
    table = PairTable.of(pairs, metrics, methods, targets, also=also).complete_metrics()
    result = evaluate_predictors(table, table.metrics, others, methods, targets, protocols)
    for name, members in families.items():
        present = [metric for metric in members if metric in table.metrics]
        if present:
            more = evaluate_predictors(
                table, present, {name: PREDICTORS["ridge"]}, methods, targets, protocols
            )
            result = joined(result, more)
    notes = []
    for name, predictor in own.items():
        asked, said = asked_columns(name, predictor, table, methods, targets)
        if not asked:
            said = [f"{name} predicted nothing: the table lacks its columns ({_needed(predictor, methods)})."]
        notes += said
        for (target, columns), own_methods in asked.items():
            selected = table.select(columns, [f"{target}_{method}" for method in own_methods])
            more = evaluate_predictors(selected, columns, {name: predictor}, own_methods, [target], protocols)
            result = joined(result, more)
    # Scores already count folds without a correlation, so only notes about missing columns are kept.
    return PredictionResult(result.records, result.folds, result.predictions, result.coefficients, notes)


def _needed(predictor: Predictor, methods: Sequence[str]) -> str:
    return summarise_names(evidence_columns([predictor], TARGETS[:1], methods))


def _scored(
    result: PredictionResult, population: _Population, calibration: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average the scores of each predictor over methods, also r without each task."""
    predictions = result.predictions
    intervals = (
        conformal_table(predictions)
        if calibration is None
        else transferred_intervals(calibration, predictions)
    )
    keys = ["protocol", "target", "predictor"]
    widths = intervals.groupby(keys, sort=False)[["half_width", "coverage", "level"]].mean().reset_index()
    chosen = method_choice(predictions).reindex(columns=[*keys, "regret", "fixed_regret"])
    situations = {protocol.name: protocol.situation for protocol in population.protocols}
    rows, without = [], []
    for key, group in predictions.groupby(keys, sort=False):
        protocol, target, predictor = map(str, key)
        own = dict(zip(KEYS, (population.name, situations[protocol], target, predictor), strict=True))
        correlations = _Correlations(group, situations[protocol])
        off = (group["predicted"] - group["measured"]).groupby(group["method"], sort=False)
        cost, rests_on = KINDS[predictor]
        rows.append(
            {
                **own,
                "cost": cost,
                "rests_on": rests_on,
                "r": correlations.mean(),
                "bias": float(off.mean().mean()),
                "mae": float(off.apply(lambda one: one.abs().mean()).mean()),
                "protocol": protocol,
                "n_methods": group["method"].nunique(),
                "n_pairs": len(group[["task_a", "task_b"]].drop_duplicates()),
            }
        )
        without += [{**own, "task": task, "r": correlations.mean(task)} for task in correlations.tasks]
    scores = pd.DataFrame(rows).merge(widths, how="left", on=keys).merge(chosen, how="left", on=keys)
    return scores[[*KEYS, "cost", "rests_on", "r", *_SCORES]], pd.DataFrame(without)


class _Correlations:
    """The mean correlation over methods of one predictor's validated pairs, with or without a task."""

    def __init__(self, predictions: pd.DataFrame, situation: str) -> None:
        self._by_fold = situation == KNOWN_PARTNER
        self._methods = [self._sides(group) for _, group in predictions.groupby("method", sort=False)]
        ends = predictions[["task_a", "task_b"]].to_numpy(dtype=object)
        self.tasks: list[str] = list(dict.fromkeys(ends.T.ravel().tolist()))

    def _sides(self, group: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        predicted, measured, mean = (
            group[name].to_numpy(dtype=float) for name in ("predicted", "measured", "training_mean")
        )
        if not self._by_fold:
            predicted, measured = beyond_training_mean(predicted, measured, mean)
        ends = group[["task_a", "task_b"]].to_numpy(dtype=object)
        return predicted, measured, ends, group["held_out"].to_numpy(dtype=object)

    def mean(self, without: str | None = None) -> float:
        """Return the mean correlation over methods, computed on all pairs that do not contain the task `without`."""
        found: list[float] = []
        for predicted, measured, ends, held_out in self._methods:
            kept = (ends != without).all(axis=1)
            if self._by_fold:
                found.append(_mean_over_folds(predicted[kept], measured[kept], held_out[kept]))
            else:
                found.append(float(np.nan_to_num(pearson_r(predicted[kept], measured[kept]))))
        return mean_and_std(np.array(found))[0]


def _mean_over_folds(
    predicted: Float[np.ndarray, " n"], measured: Float[np.ndarray, " n"], held_out: np.ndarray
) -> float:
    folds = [held_out == label for label in dict.fromkeys(held_out.tolist())]
    return mean_and_std(np.array([pearson_r(predicted[one], measured[one]) for one in folds]))[0]


def over_seeds(found: Mapping[int, EvidenceScores]) -> pd.DataFrame:
    """Average the scores over fine-tuning seeds, separately for each kind of evidence.

    Args:
        found: seed → scores.

    Returns:
        One row per group, situation, target and predictor with the columns of `COLUMNS`: scores are means over seeds.
        `r_low` and `r_high` are the 95 % interval over tasks, by the jackknife of the mean over seeds, so that each
        task is left out of all seeds at once; `seed_low` and `seed_high` that over seeds, by Student's t, NaN for one
        seed. `seeds` counts them.
    """
    scores = pd.concat([one.scores.assign(seed=seed) for seed, one in found.items()], ignore_index=True)
    without = pd.concat([one.without.assign(seed=seed) for seed, one in found.items()], ignore_index=True)
    means = without.groupby([*KEYS, "task"], sort=False)["r"].mean().reset_index()
    by_task = {key: group["r"].to_numpy(dtype=float) for key, group in means.groupby(KEYS, sort=False)}
    rows = []
    for key, group in scores.groupby(KEYS, sort=False):
        r = group["r"].to_numpy(dtype=float)
        low, high = jackknife_interval(mean_and_std(r)[0], by_task[key])
        seed_low, seed_high = student_interval(r[~np.isnan(r)])
        first = group.iloc[0]
        rows.append(
            {
                **dict(zip(KEYS, map(str, key), strict=True)),
                **{name: first[name] for name in ("cost", "rests_on")},
                **{name: group[name].mean() for name in ("r", *_SCORES)},
                **{"r_low": low, "r_high": high, "seed_low": seed_low, "seed_high": seed_high},
                "seeds": len(group),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n_methods": int, "n_pairs": int})
