"""Run a prediction study: score all predictors, and compute tables that answer the research questions."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

from mergeability.checks import Seed, Whole
from mergeability.errors import UserError
from mergeability.prediction.evidence import (
    evidence_columns,
    joined,
    study_own_evidence,
    with_own_evidence,
)
from mergeability.prediction.pair_table import FINETUNED, TARGETS, PairTable, chosen_methods
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.questions.ablation import category_ablation
from mergeability.prediction.questions.coefficients import coefficient_table, stable_metrics
from mergeability.prediction.questions.consistency import method_consistency
from mergeability.prediction.questions.fingerprints import fingerprints
from mergeability.prediction.questions.method_choice import method_choice
from mergeability.prediction.questions.seed_spread import seed_spread, seed_table
from mergeability.prediction.questions.set_scores import set_score_table
from mergeability.prediction.questions.variance import variance_split
from mergeability.prediction.validation.evaluate import NO_OUTCOMES, PredictionResult, evaluate_predictors
from mergeability.prediction.validation.folds import make_folds
from mergeability.prediction.validation.intervals import conformal_table
from mergeability.prediction.validation.permutation import permutation_test
from mergeability.prediction.validation.protocols import LeaveOneTaskOut, named_protocols
from mergeability.progress import Progress, no_progress
from mergeability.threads import one_blas_thread

logger = logging.getLogger(__name__)

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class StudySettings:
    """Hold the options of a prediction study.

    Attributes:
        protocols: names of the protocols: `loto`, `l2to` or `halves`.
        targets: outcomes to predict; the first one is the default of the report.
        rows: `per_method`, or `complete`: only pairs with an outcome for every method.
        permutations: number of permutations of tasks, for the p-values; 0 skips the test.
        seeds: number of starts of predictors with a random start, on the first target; 0 skips their spread.
        seed: seed of the permutations.
        level: nominal share of pairs inside the intervals, in (0, 1).
        ablation: whether to refit without each category of metrics.

    Raises:
        UserError: a protocol is unknown, a number is negative, or the level is not between 0 and 1.

    Examples:
        >>> from mergeability.prediction import StudySettings
        >>> StudySettings(protocols=["l2to"], permutations=99).level
        0.9
    """

    protocols: Sequence[str] = ("loto", "l2to")
    targets: Sequence[str] = TARGETS
    rows: Literal["per_method", "complete"] = "per_method"
    permutations: Whole = 999
    seeds: Whole = 10
    seed: Seed = 0
    level: float | int = 0.9
    ablation: bool = True

    def __post_init__(self) -> None:
        named_protocols(self.protocols)
        for name in ("permutations", "seeds"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise UserError(f"Expected {name} to be an integer of at least 0, got {count!r}.")
        if not 0 < self.level < 1:
            raise UserError(f"Expected the level of intervals to be between 0 and 1, got {self.level}.")


@dataclass(frozen=True)
class Known:
    """Hold the inputs of a study other than the pair table.

    Attributes:
        ranges: metric → its lowest and highest value.
        categories: categories of metrics, name → metrics.
        sets: merges of more than two models, one row per set.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sets: pd.DataFrame = field(default_factory=pd.DataFrame)


def study_predictions(
    table: pd.DataFrame | PairTable,
    metrics: Sequence[str],
    predictors: Mapping[str, Predictor],
    methods: Sequence[str] | None = None,
    settings: StudySettings | None = None,
    known: Known | None = None,
    progress: Progress = no_progress,
) -> PredictionResult:
    """Score the predictors, and compute tables that answer the research questions.

    The result's `tables` are `stable_metrics` and `metric_weights` (which metrics the predictors use), `fingerprints`
    (whether methods depend on the same metrics), `consistency` (whether methods rank pairs alike), `variance` and
    `relabelling` (whether metrics add to the identity of the two tasks; the second is the permutation test),
    `single_metrics`, `ablation`, `seeds`, `intervals`, `method_choice`, and `sets` if sets were merged. Empty tables
    are left out.

    Args:
        table: one row per pair; a data frame is checked first.
        metrics: the columns that may be features.
        predictors: name → regressor.
        methods: merge methods; those the table has outcomes of when None.
        settings: settings of the study; the defaults when None.
        known: ranges and categories of metrics, and merges of larger sets.
        progress: wraps the loops over predictors and permutations.

    Returns:
        Scores, predictions, coefficients, notes and tables.

    Raises:
        UserError: for the reasons given in `evaluate_predictors`.

    Examples:
        >>> from mergeability.prediction import Additive, Ridge, StudySettings, study_predictions
        >>> from mergeability.prediction.examples import example_pairs
        >>> settings = StudySettings(targets=["norm_acc"], permutations=19, seeds=0)
        >>> predictors = {"additive": Additive(), "ridge": Ridge()}
        >>> found = study_predictions(example_pairs(), ["cosine", "distance"], predictors, settings=settings)
        >>> [name for name in found.tables if "metric" in name]
        ['metric_weights', 'stable_metrics', 'single_metrics']
        >>> variance = found.tables["variance"].set_index("method")
        >>> variance[["task_effects", "metrics_beyond", "residual"]].round(2).loc["ties"].to_dict()
        {'task_effects': 0.7, 'metrics_beyond': 0.25, 'residual': 0.05}
    """
    settings, known = settings or StudySettings(), known or Known()
    methods = chosen_methods(table, methods, settings.targets)
    if not methods:
        return PredictionResult(notes=[NO_OUTCOMES])
    own, others = with_own_evidence(predictors)
    also = [FINETUNED, *evidence_columns(own.values(), settings.targets, methods)]
    table = PairTable.of(table, metrics, methods, settings.targets, known.ranges, also=also)
    design = _Design(methods, settings)
    result = design.evaluate(table, table.metrics, others, progress)
    result = replace(result, notes=[*table.notes, *result.notes])
    if not result.records:
        return result
    result = _with_known_accuracies(result, table, design)
    by_own = study_own_evidence(own, table, methods, settings)
    result = joined(result, by_own.result)
    outcomes = [
        (target, method)
        for target in settings.targets
        for method in methods
        if f"{target}_{method}" in table.frame.columns and table.frame[f"{target}_{method}"].notna().any()
    ]
    studied = table.select(table.metrics, [f"{target}_{method}" for target, method in outcomes])
    if settings.rows == "complete":
        # Keep the tasks of the whole table, so that the drawn permutations are the same.
        whole = studied.frame.notna().all(axis=1)
        studied = replace(studied, frame=studied.frame[whole].reset_index(drop=True))
    with one_blas_thread():
        tables = _tables(result, studied, outcomes, others, settings, known, progress)
        tables["evidence"] = by_own.tested
    if len(known.sets):
        tables["sets"] = set_score_table(known.sets, table.frame, result.predictions)
    return replace(result, tables={name: one for name, one in tables.items() if len(one)})


@dataclass(frozen=True)
class _Design:
    """The evaluation that every predictor of a study goes through."""

    methods: Sequence[str]
    settings: StudySettings

    def evaluate(
        self,
        table: PairTable,
        metrics: Sequence[str],
        predictors: Mapping[str, Predictor],
        progress: Progress = no_progress,
    ) -> PredictionResult:
        """Score predictors on the given metrics."""
        return evaluate_predictors(
            table,
            metrics,
            predictors,
            self.methods,
            self.settings.targets,
            named_protocols(self.settings.protocols),
            self.settings.rows,
            progress=progress,
        )


def _with_known_accuracies(result: PredictionResult, table: PairTable, design: _Design) -> PredictionResult:
    """Add the baseline of the two fine-tuned models' own accuracies, where they are known."""
    if FINETUNED not in table.frame.columns:
        return result
    # Use the same pairs as all other predictors.
    same_pairs = table.complete_metrics()
    if same_pairs.frame[FINETUNED].isna().all():
        return result
    more = design.evaluate(same_pairs, [FINETUNED], {"finetuned": LinearRegression()})
    return joined(result, replace(more, coefficients=more.coefficients.iloc[:0], notes=[]))


def _tables(
    result: PredictionResult,
    table: PairTable,
    outcomes: Sequence[tuple[str, str]],
    predictors: Mapping[str, Predictor],
    settings: StudySettings,
    known: Known,
    progress: Progress,
) -> dict[str, pd.DataFrame]:
    coefficients = result.coefficients[result.coefficients["protocol"] == settings.protocols[0]]
    weights = coefficient_table(coefficients)
    found = {
        "metric_weights": weights,
        "stable_metrics": stable_metrics(weights)
        if len({method for _, method in outcomes}) > 1
        else pd.DataFrame(),
        "fingerprints": _fingerprints(weights),
        "consistency": method_consistency(table.frame, outcomes),
        "variance": variance_split(table, outcomes),
        "intervals": conformal_table(result.predictions, settings.level),
        "method_choice": method_choice(result.predictions),
    }
    tested = permutation_test(table, outcomes, settings.permutations, settings.seed, progress)
    found |= {"relabelling": tested.methods, "single_metrics": tested.single}
    if settings.ablation and sum(any(m in table.metrics for m in c) for c in known.categories.values()) > 1:
        protocols = [one for one in named_protocols(settings.protocols) if one.name != "halves"]
        found["ablation"] = category_ablation(table, known.categories, outcomes, protocols)
    if settings.seeds:
        methods = list(dict.fromkeys(method for _, method in outcomes))
        # Restricted to the main outcome of the report, because every fit is repeated ten times.
        first = settings.targets[:1]
        folds = make_folds(table, methods, first, LeaveOneTaskOut(), settings.rows == "complete")
        found["seeds"] = seed_table(seed_spread(predictors, folds.folds, list(range(settings.seeds))))
    return found


def _fingerprints(weights: pd.DataFrame) -> pd.DataFrame:
    parts = [
        fingerprints(group.rename(columns={"mean": "coefficient"})).assign(
            target=str(target), predictor=str(predictor)
        )
        for (target, predictor), group in weights.groupby(["target", "predictor"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def beyond_task_effects(tested: pd.DataFrame, target: str) -> list[str]:
    """Return, for each method, a sentence on whether metrics improve on predictions from task effects alone."""
    sentences = []
    for row in tested[tested["target"] == target].itertuples(index=False):
        gain, p = float(row.gain), float(row.p_beyond)  # type: ignore[arg-type]
        if np.isnan(gain):
            continue
        significance = "" if np.isnan(p) else f", p = {p:.3f} by a permutation test over tasks"
        change = (
            f"their squared error for a left-out task's pairs changes by {-100 * gain:+.1f} %{significance}"
        )
        if gain <= 0 or p > SIGNIFICANT:
            sentences.append(f"{row.method}: the metrics add nothing beyond task effects ({change}).")
        else:
            sentences.append(f"{row.method}: the metrics improve predictions beyond task effects ({change}).")
    return sentences
