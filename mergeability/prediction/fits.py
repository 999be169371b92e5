"""Fit one linear predictor per merge method on a common set of columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.own_evidence import Probe, probe_columns
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.questions.method_choice import method_choice
from mergeability.prediction.validation.evaluate import PredictionResult, evaluate_predictors
from mergeability.prediction.validation.intervals import conformal_table, half_width, residuals_of
from mergeability.prediction.validation.protocols import LeaveTwoTasksOut, inner_folds

PROBE = "probe"
"""The name of the evidence that estimates the outcome directly, so that nothing is fitted."""


@dataclass(frozen=True)
class MethodFit:
    """Hold the linear predictor of one merge method: outcome = intercept + weights · scaled metrics.

    Attributes:
        weights: one per metric, for metrics scaled to [-1, 1] by the ranges they were fitted on.
        intercept: in outcome units.
        half_width: half-width of the prediction interval, in outcome units.
        level: nominal share of pairs of new tasks inside the interval, in (0, 1).
        r_beyond_mean: correlation of predictions and outcomes for pairs of two unseen tasks, after each fold's training
            mean is subtracted from both; None if predictions do not vary around that mean.
        r_low: lower end of its 95 % interval.
        n_pairs: number of pairs that it was fitted on.
        mean: mean outcome of these pairs; None in files without it.
        coverage: share of held-out tasks' pairs inside the interval of the other tasks; None if unknown.
    """

    weights: list[float]
    intercept: float
    half_width: float
    level: float
    r_beyond_mean: float | None
    r_low: float | None
    n_pairs: int
    mean: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Hold one tier of evidence: a set of metrics, and one fit per merge method on these metrics.

    Attributes:
        metrics: names of the columns.
        lowest: lowest value of each in the pairs of the fit.
        highest: highest value of each.
        means: mean of each over these pairs, scaled to [-1, 1].
        methods: merge method → fit.
        name: name of the tier, such as `functional`.
        regret: mean loss against each pair's best method when the method is chosen by this evidence, on pairs of two
            unseen tasks, in outcome units; None with a single method.
        fixed_regret: the same for always taking the method that is best on average.
    """

    metrics: list[str]
    lowest: list[float]
    highest: list[float]
    means: list[float]
    methods: dict[str, MethodFit]
    name: str = "metrics"
    regret: float | None = None
    fixed_regret: float | None = None

    @property
    def r(self) -> float:
        """The mean over methods of the correlation between predictions and outcomes.

        The training mean is subtracted from predictions and outcomes first. An undefined correlation counts as 0.
        """
        return float(np.mean([fit.r_beyond_mean or 0.0 for fit in self.methods.values()]))

    @property
    def informative(self) -> bool:
        """Whether the confidence interval of the correlation is above 0 for at least one method."""
        return any((fit.r_low or 0.0) > 0 for fit in self.methods.values())

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Scale an array (N, metrics) to [-1, 1] by the ranges in the training pairs; constant metrics become 0."""
        lowest, highest = np.array(self.lowest), np.array(self.highest)
        varies = highest > lowest
        scaled = np.where(varies, 2 * (values - lowest) / np.where(varies, highest - lowest, 1.0) - 1, 0.0)
        # Columns that were constant in the fit are uninformative and become 0; undefined values stay NaN.
        return np.where(np.isnan(values), np.nan, scaled)


def ridge_evidence(name: str, table: PairTable, methods: Sequence[str], target: str) -> Evidence:
    """Fit one ridge regression per method, on metrics scaled by their ranges over all complete pairs.

    Args:
        name: name of the tier.
        table: the pairs, with the metrics of the tier.
        methods: merge methods.
        target: the outcome.

    Returns:
        The tier of evidence.

    Raises:
        UserError: no pair has all of the metrics, or there are too few pairs to leave two tasks out.
    """
    metrics = list(table.metrics)
    whole = table.frame[metrics]
    whole = whole[whole.notna().all(axis=1)].to_numpy(dtype=float)
    if not len(whole):
        raise UserError(
            "No pair has all requested metrics, so no predictor can be fitted. Leave out metrics with empty"
            " cells."
        )
    protocol = LeaveTwoTasksOut()
    result = evaluate_predictors(table, metrics, {"ridge": Ridge()}, methods, [target], [protocol])
    tier = Evidence(metrics, whole.min(axis=0).tolist(), whole.max(axis=0).tolist(), [], {}, name)

    def linear(method: str) -> tuple[np.ndarray, float, np.ndarray]:
        rows, _ = table.rows(f"{target}_{method}")
        model = Ridge().fit(tier.scaled(rows.features), rows.outcome, inner_folds(protocol, rows.ends))
        return model.coef_, float(model.intercept_), rows.outcome

    return _described(tier, result, linear, tier.scaled(whole).mean(axis=0))


def probe_evidence(table: PairTable, methods: Sequence[str], target: str) -> Evidence | None:
    """Predict the outcomes of each method from the probes of its merges; return None if the table contains no probes.

    A probe passes unlabelled images through a merge to estimate its outcome. The columns are shares, and their range
    is [0, 1]: nothing is extrapolated.

    Args:
        table: the pairs, with columns of probes.
        methods: merge methods.
        target: the outcome.

    Returns:
        The tier of evidence.
    """
    columns = {method: probe_columns(target, method)[0] for method in methods}
    known = [m for m in methods if columns[m] in table.frame and table.frame[columns[m]].notna().any()]
    if not known:
        return None
    results = []
    for method in known:
        own = table.select([columns[method]], [f"{target}_{method}"])
        results.append(
            evaluate_predictors(
                own, [columns[method]], {PROBE: Probe()}, [method], [target], [LeaveTwoTasksOut()]
            )
        )
    predictions = [one.predictions for one in results if len(one.predictions)]
    if not predictions:
        return None
    result = PredictionResult(
        [record for one in results for record in one.records],
        predictions=pd.concat(predictions, ignore_index=True),
    )
    names = [columns[method] for method in known]
    tier = Evidence(names, [0.0] * len(names), [1.0] * len(names), [], {}, PROBE)

    def identity(method: str) -> tuple[np.ndarray, float, np.ndarray]:
        rows, _ = table.select([columns[method]], [f"{target}_{method}"]).rows(f"{target}_{method}")
        return 0.5 * (np.array(names) == columns[method]), 0.5, rows.outcome

    return _described(tier, result, identity, tier.scaled(table.frame[names].mean().to_numpy()))


def _described(
    tier: Evidence,
    result: PredictionResult,
    linear: Callable[[str], tuple[np.ndarray, float, np.ndarray]],
    means: np.ndarray,
) -> Evidence:
    """Return the tier of evidence with the fit of each method and its scores on pairs of two unseen tasks."""
    fits = {}
    for record in result.records:
        method = record["method"]
        predictions = result.predictions[result.predictions["method"] == method]
        weights, intercept, outcome = linear(method)
        width, level = half_width(residuals_of(predictions))
        covered = float(conformal_table(predictions)["coverage"].iloc[0])
        fits[method] = MethodFit(
            [float(weight) for weight in weights],
            intercept,
            width,
            level,
            record["r_beyond_mean"],
            record["r_beyond_mean_low"],
            len(outcome),
            float(outcome.mean()),
            None if np.isnan(covered) else covered,
        )
    if not fits:
        raise UserError("There are too few pairs to leave two tasks out, so no predictor can be fitted.")
    choice = method_choice(result.predictions)
    regret, fixed = (
        float(choice[name].iloc[0]) if len(choice) else None for name in ("regret", "fixed_regret")
    )
    return Evidence(
        tier.metrics, tier.lowest, tier.highest, [float(one) for one in means], fits, tier.name, regret, fixed
    )


def in_order_of_merit(tiers: Mapping[str, Evidence]) -> list[Evidence]:
    """Sort tiers of evidence from best to worst by `r`, the mean correlation for pairs of two unseen tasks."""
    return sorted(tiers.values(), key=lambda one: -one.r)
