"""Split each architecture's variance of outcomes, and measure which parts of it repeat over seeds.

The parts are task effects, what metrics predict in addition to task effects, and the rest.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float

from mergeability.prediction.architectures.analyses import (
    TARGET,
    Analysis,
    architectures_of,
    common_metrics,
    methods_of,
    seeds_of,
    tasks_of,
)
from mergeability.prediction.architectures.resampling import Estimate, estimate
from mergeability.prediction.pair_table import incidence
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.questions.variance import residuals
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.protocols import LeaveTwoTasksOut
from mergeability.prediction.validation.scores import is_constant

COLUMNS = [
    "architecture", "method", "seed", "n_pairs", "task_effects", "metrics_beyond", "residual",
]  # fmt: skip
REPEATED = [
    "architecture", "method", "seeds", "task", "task_low", "task_high", "partner", "partner_low", "partner_high",
    "changes",
]  # fmt: skip
ALL = "all"
# Left-out task, architecture and two seeds → method → shares.
Memory = dict[tuple[str | None, str, int, int], dict[str, dict[str, float]]]


def variance_shares(analysis: Analysis) -> pd.DataFrame:
    """Split the variance of each method's outcome, over pairs of models, into shares.

    `task_effects` is R² of y = μ + u_a + u_b by least squares: the share that depends on each model alone.
    `metrics_beyond` is the share that metrics predict in addition: ridge on the metrics' own residuals from task
    effects predicts the outcome's residual of each pair from the pairs that share no task with it; it is
    (1 - task_effects) · (1 - Σ(e - ê)² / Σe²), below 0 if these predictions have larger errors than task effects alone.
    `residual` is the rest, with a negative share of metrics counted as 0.

    Args:
        analysis: the pairs.

    Returns:
        One row per method with the columns of `COLUMNS`; NaN if the outcome is constant. `metrics_beyond` is NaN if
        task effects explain everything, or too few pairs share no task.
    """
    rows = []
    metrics = common_metrics([analysis])
    left = {method: _beyond(analysis, method) for method in analysis.methods}
    predicted = _predicted(analysis, metrics, left)
    for method in analysis.methods:
        outcome = analysis.pairs[f"{TARGET}_{method}"].dropna().to_numpy(dtype=float)
        labels = {"architecture": analysis.architecture, "method": method, "seed": analysis.seed}
        rest = left[method].dropna().to_numpy(dtype=float)
        row: dict[str, object] = {**labels, "n_pairs": len(outcome)}
        if len(outcome) > 2 and not is_constant(outcome):
            unexplained = float((rest**2).sum() / ((outcome - outcome.mean()) ** 2).sum())
            beyond = unexplained * predicted.get(method, float("nan"))
            row |= {"task_effects": 1 - unexplained, "metrics_beyond": beyond}
            row["residual"] = unexplained - max(0.0, 0.0 if np.isnan(beyond) else beyond)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def repeated_shares(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """Split the variance of outcomes into parts that repeat over seeds and a part that changes from seed to seed.

    For two seeds, the covariance over pairs of their additive fits, divided by the geometric mean of the variances of
    both outcomes, is the repeated share of the models alone (`task`); the covariance of their residuals, corrected for
    the degrees of freedom, that of the combination of two tasks (`partner`). Noise of one seed's training and
    evaluation adds to neither. `changes` is the rest.

    Args:
        analyses: pair tables of several seeds.

    Returns:
        One row per architecture and method (and `all` methods), means over pairs of seeds, with intervals over tasks
        and seeds; NaN with one seed.
    """
    rows = []
    for architecture in architectures_of(analyses):
        own = [one for one in analyses if one.architecture == architecture]
        methods = methods_of(own)
        memory: Memory = {}
        for name, chosen in {ALL: methods, **{method: [method] for method in methods}}.items():
            task, partner = (repeated_share(own, chosen, part, memory) for part in ("task", "partner"))
            labels = {"architecture": architecture, "method": name, "seeds": len(own)}
            shares = {**task.columns("task"), **partner.columns("partner")}
            rows.append({**labels, **shares, "changes": 1 - task.value - partner.value})
    return pd.DataFrame(rows, columns=REPEATED)


def repeated_share(
    analyses: Sequence[Analysis], methods: Sequence[str], part: str, memory: "Memory | None" = None
) -> Estimate:
    """Average the share of the variance that two seeds have in common, over methods, architectures and seeds.

    A repeated share is the part of the variance of outcomes that two seeds have in common; see `repeated_shares`.

    Args:
        analyses: the pair tables.
        methods: merge methods.
        part: which share, "task" or "partner".
        memory: shares that were computed before, for the same tables; filled.
    """
    memory = {} if memory is None else memory
    couples = [(a, b) for a, b in combinations(analyses, 2) if a.architecture == b.architecture]
    merged: dict[tuple[str, int, int], _Both] = {}

    def statistic(task: str | None, seed: int | None) -> float:
        found = []
        for first, second in couples:
            if seed is not None and seed in (first.seed, second.seed):
                continue
            key = (task, first.architecture, first.seed, second.seed)
            if key not in memory:
                if key[1:] not in merged:
                    merged[key[1:]] = _both(first, second)
                memory[key] = _shared(merged[key[1:]], task)
            found += [own[part] for method, own in memory[key].items() if method in methods]
        known = np.array(found)[~np.isnan(found)] if found else np.empty(0)
        return float(known.mean()) if len(known) else float("nan")

    return estimate(statistic, tasks_of(analyses), seeds_of(analyses))


# The two tasks of each pair that two seeds have, and the outcomes of both seeds by method.
_Both = tuple[np.ndarray, dict[str, np.ndarray]]


def _both(first: Analysis, second: Analysis) -> _Both:
    keys = ["task_a", "task_b"]
    methods = [method for method in first.methods if method in second.methods]
    columns = [f"{TARGET}_{method}" for method in methods]
    tables = (one.sorted().pairs[[*keys, *columns]] for one in (first, second))
    both = next(tables).merge(next(tables), on=keys)
    outcomes = {
        method: both[[f"{column}_x", f"{column}_y"]].to_numpy(dtype=float).T
        for method, column in zip(methods, columns, strict=True)
    }
    return both[keys].to_numpy(dtype=object), outcomes


def _shared(both: _Both, without: str | None) -> dict[str, dict[str, float]]:
    """Return the two repeated shares of each method that both seeds have."""
    ends, outcomes = both
    kept = (ends != without).all(axis=1)
    return {method: _shared_by(ends[kept], two[:, kept]) for method, two in outcomes.items()}


def _shared_by(ends: np.ndarray, outcomes: Float[np.ndarray, "two n"]) -> dict[str, float]:
    known = ~np.isnan(outcomes).any(axis=0)
    ends, outcomes = ends[known], outcomes[:, known]
    undefined = {"task": float("nan"), "partner": float("nan")}
    if len(ends) < 3 or any(is_constant(one) for one in outcomes):
        return undefined
    tasks = incidence(ends, sorted({str(task) for task in ends.ravel()}))
    centred = [one - one.mean() for one in outcomes]
    rests = [residuals(tasks, one) for one in centred]
    freedom, count = len(ends) - rests[0][1], len(ends)
    if freedom < 1:
        return undefined
    scale = np.sqrt(np.prod([one @ one / (count - 1) for one in centred]))
    of_rest = rests[0][0] @ rests[1][0] / freedom
    # Interactions spread over all degrees of freedom, and those of the fit contain their part of them.
    of_fit = (centred[0] @ centred[1] - rests[0][0] @ rests[1][0]) / (count - 1)
    of_fit -= of_rest * (rests[0][1] - 1) / (count - 1)
    return {"task": float(of_fit / scale), "partner": float(of_rest / scale)}


def _beyond(analysis: Analysis, method: str) -> pd.Series:
    """Return the residuals of an outcome from its additive fit, NaN for pairs without an outcome."""
    outcome = analysis.pairs[f"{TARGET}_{method}"]
    known = outcome.notna()
    left = pd.Series(np.nan, index=analysis.pairs.index)
    left[known] = _projected(analysis.pairs[known], outcome[known].to_numpy(dtype=float))
    return left


def _projected(pairs: pd.DataFrame, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    ends = pairs[["task_a", "task_b"]].to_numpy(dtype=object)
    left, _ = residuals(incidence(ends, sorted({str(task) for task in ends.ravel()})), values)
    # An exactly additive outcome leaves rounding errors.
    small = 1e-9 * max(float(np.abs(values).max(initial=0.0)), 1e-300)
    return np.where(np.abs(left) < small, 0.0, left)


def _predicted(analysis: Analysis, metrics: Sequence[str], left: Mapping[str, pd.Series]) -> dict[str, float]:
    """Return the validated R² of each method's residuals from the metrics' residuals, over predicting 0."""
    if not metrics:
        return {}
    frame = analysis.pairs[["task_a", "task_b"]].copy()
    for name in metrics:
        frame[name] = _projected(analysis.pairs, analysis.pairs[name].to_numpy(dtype=float))
    usable = [method for method, one in left.items() if one.notna().all() and (one != 0).any()]
    for method in usable:
        frame[f"{TARGET}_{method}"] = left[method]
    if not usable:
        return {}
    result = evaluate_predictors(frame, metrics, {"ridge": Ridge()}, usable, [TARGET], [LeaveTwoTasksOut()])
    found = {}
    for method, rows in result.predictions.groupby("method", sort=False):
        error = float(((rows["measured"] - rows["predicted"]) ** 2).sum())
        found[str(method)] = 1 - error / float((rows["measured"] ** 2).sum())
    return found
