"""A fitted predictor as a file: scores pairs that nobody merged, and says where it does not know.

It is plain JSON (numbers and names), so reading one runs nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.files import atomic_file
from mergeability.prediction.pair_table import TARGETS, PairTable, summarise_names
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.intervals import half_width, task_scores
from mergeability.prediction.validation.protocols import LeaveTwoTasksOut, inner_folds
from mergeability.prediction.validation.scores import pearson_r

FILE = "fitted.json"
MARGIN = 0.1
"""How far beyond the range it was fitted on a metric may lie, as a share of that range."""
_FORMAT = 1
_DRIVERS = 3


@dataclass(frozen=True)
class MethodFit:
    """The linear predictor of one merge method: outcome = intercept + weights · scaled metrics.

    Attributes:
        weights: one a metric, for metrics scaled to [-1, 1] by the ranges they were fitted on.
        intercept: in outcome units.
        half_width: of the interval that holds 90 % of a new task's pairs, at `level`.
        level: of the interval.
        r_beyond_mean: correlation with outcomes of pairs of two unseen tasks, beyond the training mean; None where
            nothing is predicted.
        r_low: lower end of its 95 % interval.
        n_pairs: that it was fitted on.
    """

    weights: list[float]
    intercept: float
    half_width: float
    level: float
    r_beyond_mean: float | None
    r_low: float | None
    n_pairs: int


@dataclass(frozen=True)
class Evidence:
    """What was fitted on one set of metrics: their names, ranges and means, and one fit a method."""

    metrics: list[str]
    lowest: list[float]
    highest: list[float]
    means: list[float]
    methods: dict[str, MethodFit]


@dataclass(frozen=True)
class Scorer:
    """Predicts outcomes of pairs from their metrics.

    Attributes:
        target: the outcome, `norm_acc` or `acc`.
        tasks: whose pairs it was fitted on.
        evidence: fits on several sets of metrics, the largest first: a table without data has fewer.
    """

    target: str
    tasks: list[str]
    evidence: list[Evidence]

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame | PairTable,
        metrics: Sequence[str],
        methods: Sequence[str],
        subsets: Sequence[Sequence[str]] = (),
    ) -> "Scorer":
        """Fit ridge for every method, its strength and its interval by leaving two tasks out.

        Args:
            table: pairs, their metrics and outcomes; a data frame is checked first.
            metrics: what may be used.
            methods: merge methods with outcomes.
            subsets: smaller sets of metrics to fit as well, for models of which no more is known.

        Raises:
            UserError: as `PairTable.validate`.
        """
        columns = table.frame.columns if isinstance(table, PairTable) else table.columns
        target = fitted_target(list(columns), methods)
        wanted = [list(metrics), *([m for m in subset if m in metrics] for subset in subsets)]
        chosen = [names for i, names in enumerate(wanted) if names not in wanted[:i]]
        known = [method for method in methods if f"{target}_{method}" in columns]
        table = PairTable.of(table, metrics, known, [target])
        evidence = [_evidence(table.select(names), known, target) for names in chosen if names]
        return cls(target, list(table.tasks), evidence)

    def save(self, path: Path) -> None:
        """Write the scorer as JSON."""
        with atomic_file(Path(path)) as temporary:
            text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Scorer":
        """Read a scorer from its file, or from the folder of the analysis that fitted it.

        Raises:
            UserError: there is none, or it is not one that this version reads.
        """
        path = Path(path).expanduser()
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"No fitted predictor at {file}. An analysis with outcomes and four tasks or more leaves one in its "
                "run folder: give that folder, as in fitted=outputs/demo."
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
            if content["format"] != _FORMAT:
                raise UserError(
                    f"{file} is of format {content['format']}, and this version reads {_FORMAT}: fit it again."
                )
            evidence = [_read_evidence(one) for one in content["evidence"]]
            if not evidence:
                raise ValueError("it has no fit")
            return cls(str(content["target"]), [str(task) for task in content["tasks"]], evidence)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is not a fitted predictor ({error!r}): fit it again.") from error

    def evidence_for(self, columns: Sequence[str]) -> Evidence:
        """Choose the largest set of metrics that a table has.

        Raises:
            UserError: it has none of them whole.
        """
        for one in self.evidence:
            if set(one.metrics) <= set(columns):
                return one
        least = self.evidence[-1].metrics
        missing = [name for name in least if name not in columns]
        raise UserError(
            f"The fitted predictor needs metrics that were not measured: {summarise_names(missing)}. "
            "Measure them with metric=…, or fit on those there are."
        )

    def score(self, table: pd.DataFrame, margin: float | int = MARGIN) -> pd.DataFrame:
        """Score every pair, name the method with the best lower bound, and say what drove it.

        A pair is not scored but abstained from where a metric is undefined, or lies outside the range the predictor
        was fitted on by more than `margin` of that range.

        Returns:
            One row per pair: `task_a`, `task_b`; for each method m `score_m` with its interval `score_low_m`,
            `score_high_m`; `recommended`; `driven_by`, the metrics that moved its score most from that of the mean
            pair; `abstains`, the metrics that are outside, empty where none is. Where it abstains, scores are NaN
            and nothing is recommended.
        """
        if not margin >= 0:
            raise UserError(f"Expected a margin of at least 0, got {margin}.")
        evidence = self.evidence_for(list(table.columns))
        lowest, highest = np.array(evidence.lowest), np.array(evidence.highest)
        spread = np.where(highest > lowest, highest - lowest, 1.0)
        values = table[evidence.metrics].to_numpy(dtype=float)
        scaled = np.where(highest > lowest, 2 * (values - lowest) / spread - 1, 0.0)
        # A metric that never varied says nothing, whatever it is now; but what is undefined stays so.
        scaled = np.where(np.isnan(values), np.nan, scaled)
        weighs = np.any([fit.weights for fit in evidence.methods.values()], axis=0)
        outside = weighs & ~(np.abs(scaled) <= 1 + 2 * margin)
        knows = ~outside.any(axis=1)
        found: dict[str, Any] = {"task_a": table["task_a"], "task_b": table["task_b"]}
        for method, fit in evidence.methods.items():
            score = np.where(knows, fit.intercept + np.nan_to_num(scaled) @ np.array(fit.weights), np.nan)
            found[f"score_{method}"] = score
            found[f"score_low_{method}"] = score - fit.half_width
            found[f"score_high_{method}"] = score + fit.half_width
        lower = np.stack([found[f"score_low_{method}"] for method in evidence.methods], axis=1)
        best = np.argmax(np.nan_to_num(lower, nan=-np.inf), axis=1)
        names = list(evidence.methods)
        found["recommended"] = [names[m] if known else "" for m, known in zip(best, knows, strict=True)]
        weights = np.array([evidence.methods[names[m]].weights for m in best])
        moved = weights * (scaled - np.array(evidence.means))
        found["driven_by"] = [
            _drivers(evidence.metrics, row) if known else "" for row, known in zip(moved, knows, strict=True)
        ]
        found["abstains"] = [", ".join(np.array(evidence.metrics)[row]) for row in outside]
        return pd.DataFrame(found).reset_index(drop=True)


def fitted_target(columns: Sequence[str], methods: Sequence[str]) -> str:
    """Return the target that a scorer is fitted on: the first that a table has outcomes of."""
    present = set(columns)
    return next(
        (one for one in TARGETS if any(f"{one}_{method}" in present for method in methods)), TARGETS[0]
    )


def transfer_table(scorer: Scorer, table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Compare scores with the outcomes a table has: one row per method, over the pairs that were scored.

    `r` is Pearson's correlation, `mae` the mean absolute error, `r_zero` that of the table's own mean; `covered` the
    share of pairs inside their interval, `n_pairs` how many were scored, `n_abstained` how many were not.
    """
    rows = []
    for method in scorer.evidence[0].methods:
        column = f"{scorer.target}_{method}"
        if column not in table.columns or f"score_{method}" not in scores.columns:
            continue
        measured = table[column].to_numpy(dtype=float)
        score = scores[f"score_{method}"].to_numpy(dtype=float)
        known = ~np.isnan(measured) & ~np.isnan(score)
        inside = (scores[f"score_low_{method}"].to_numpy() <= measured) & (
            measured <= scores[f"score_high_{method}"].to_numpy()
        )
        off = np.abs(measured - score)[known]
        rows.append(
            {
                "method": method,
                "target": scorer.target,
                "r": pearson_r(score[known], measured[known]),
                "mae": float(off.mean()) if known.any() else float("nan"),
                "mae_of_mean": float(np.abs(measured[known] - measured[known].mean()).mean())
                if known.any()
                else float("nan"),
                "covered": float(inside[known].mean()) if known.any() else float("nan"),
                "n_pairs": int(known.sum()),
                "n_abstained": int((~np.isnan(measured) & np.isnan(score)).sum()),
            }
        )
    return pd.DataFrame(rows)


def _evidence(table: PairTable, methods: Sequence[str], target: str) -> Evidence:
    """Fit every method on the metrics of a table; ranges are those of all pairs that have them."""
    metrics, features = list(table.metrics), table.frame[list(table.metrics)]
    whole = features[features.notna().all(axis=1)].to_numpy(dtype=float)
    if not len(whole):
        raise UserError(
            "No pair has all of the metrics asked for, so no predictor can be fitted: leave out those with empty cells."
        )
    lowest, highest = whole.min(axis=0), whole.max(axis=0)
    protocol = LeaveTwoTasksOut()
    result = evaluate_predictors(table, metrics, {"ridge": Ridge()}, methods, [target], [protocol])
    fits = {}
    for method in methods:
        rows, _ = table.rows(f"{target}_{method}")
        record = next((one for one in result.records if one["method"] == method), None)
        if record is None:
            continue
        spread = np.where(highest > lowest, highest - lowest, 1.0)
        scaled = np.where(highest > lowest, 2 * (rows.features - lowest) / spread - 1, 0.0)
        model = Ridge().fit(scaled, rows.outcome, inner_folds(protocol, rows.ends))
        predictions = result.predictions[result.predictions["method"] == method]
        width, level = half_width(task_scores(predictions))
        fits[method] = MethodFit(
            [float(weight) for weight in model.coef_],
            float(model.intercept_),
            width,
            level,
            record["r_beyond_mean"],
            record["r_beyond_mean_low"],
            len(rows.outcome),
        )
    if not fits:
        raise UserError("Too few pairs to leave two tasks out: no predictor can be fitted.")
    scaled = np.where(
        highest > lowest, 2 * (whole - lowest) / np.where(highest > lowest, highest - lowest, 1) - 1, 0
    )
    return Evidence(metrics, lowest.tolist(), highest.tolist(), scaled.mean(axis=0).tolist(), fits)


def _read_evidence(content: Mapping[str, Any]) -> Evidence:
    metrics = [str(name) for name in content["metrics"]]
    columns = {name: [float(value) for value in content[name]] for name in ("lowest", "highest", "means")}
    methods = {str(name): _read_fit(fit) for name, fit in content["methods"].items()}
    lengths = {len(metrics), *map(len, columns.values()), *(len(fit.weights) for fit in methods.values())}
    if len(lengths) != 1 or not methods:
        raise ValueError("its lists differ in length")
    return Evidence(metrics, **columns, methods=methods)


def _read_fit(content: Mapping[str, Any]) -> MethodFit:
    intercept, half_width, level = (float(content[name]) for name in ("intercept", "half_width", "level"))
    worth = [content[name] for name in ("r_beyond_mean", "r_low")]
    r_beyond_mean, r_low = (None if value is None else float(value) for value in worth)
    weights = [float(value) for value in content["weights"]]
    return MethodFit(weights, intercept, half_width, level, r_beyond_mean, r_low, int(content["n_pairs"]))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _drivers(metrics: Sequence[str], moved: np.ndarray) -> str:
    order = np.argsort(-np.abs(moved), kind="stable")[:_DRIVERS]
    return ", ".join(f"{metrics[i]} ({moved[i]:+.3f})" for i in order if moved[i] != 0)
