"""Use a fitted predictor to score pairs before merging; the predictor abstains outside its training range."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mergeability.errors import UserError
from mergeability.files import atomic_file
from mergeability.prediction import fitted_file
from mergeability.prediction.fits import Evidence, in_order_of_merit, probe_evidence, ridge_evidence
from mergeability.prediction.pair_table import TARGETS, PairTable, summarise_names
from mergeability.prediction.validation.scores import pearson_r

FILE = fitted_file.FILE
MARGIN = 0.1
"""How far beyond the range it was fitted on a metric may lie, as a share of that range."""
_DRIVERS = 3
_ENDS = ("task_a", "task_b")


@dataclass(frozen=True)
class Scorer:
    """Predict the outcomes of new pairs from their metrics or from other evidence.

    Attributes:
        target: the outcome, `norm_acc` or `acc`.
        tasks: the tasks whose pairs it was fitted on.
        evidence: tiers of evidence, ordered by how well they predicted pairs of two unseen tasks, the best first. Each
            pair is scored by the first tier whose metrics are all known and within their training range.
        models: task → SHA-256 of the fine-tuned model, if known, to recognise models of the fit.

    Examples:
        >>> from mergeability.prediction import Scorer
        >>> from mergeability.prediction.examples import example_pairs
        >>> scorer = Scorer.fit(example_pairs(), ["cosine", "distance"], ["task_arithmetic", "ties"])
        >>> scorer.tasks
        ['cars', 'dtd', 'gtsrb', 'mnist', 'sun397', 'svhn']
        >>> new = example_pairs()[["task_a", "task_b", "cosine", "distance"]].head(2)
        >>> new["distance"] = [0.5, 9.0]
        >>> scores = scorer.score(new)
        >>> scores["score_ties"].round(2).tolist(), scores["abstains"].tolist()
        ([0.88, nan], ['', 'distance'])
    """

    target: str
    tasks: list[str]
    evidence: list[Evidence]
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        table: pd.DataFrame | PairTable,
        metrics: Sequence[str],
        methods: Sequence[str],
        tiers: Mapping[str, Sequence[str]] | None = None,
    ) -> "Scorer":
        """Fit ridge regression for every merge method and every tier of evidence.

        A tier is a set of columns. Folds that leave two tasks out are used to choose the strength of the penalty and
        to compute the prediction intervals. Probes of the merges in the table (`probe_overlap_<method>`,
        `probe_confidence_<method>`) form a separate tier that needs no fit.

        Args:
            table: pairs, their metrics and outcomes; a data frame is checked first.
            metrics: the columns of the first tier, `metrics`.
            methods: merge methods for which the table contains outcomes.
            tiers: name → columns of further tiers, for models with less evidence or of different sizes; columns that
                the table lacks are left out, and a tier without any is not fitted.

        Returns:
            The fitted predictor.

        Raises:
            UserError: for the reasons given in `PairTable.validate`.
        """
        columns = table.frame.columns if isinstance(table, PairTable) else table.columns
        target = fitted_target(list(columns), methods)
        known = [method for method in methods if f"{target}_{method}" in columns]
        extra = [name for names in (tiers or {}).values() for name in names]
        probes = [f"probe_{kind}_{method}" for kind in ("overlap", "confidence") for method in known]
        table = PairTable.of(table, metrics, known, [target], also=[*extra, *probes])
        wanted = {"metrics": list(metrics)}
        for name, names in (tiers or {}).items():
            chosen = [one for one in names if one in table.frame.columns]
            if chosen and chosen not in wanted.values():
                wanted[name] = chosen
        fitted = {
            name: ridge_evidence(name, table.select(names), known, target)
            for name, names in wanted.items()
            if names
        }
        probed = probe_evidence(table, known, target)
        if probed is not None:
            fitted[probed.name] = probed
        return cls(target, list(table.tasks), in_order_of_merit(fitted))

    def with_models(self, models: Mapping[str, str]) -> "Scorer":
        """Return a copy of this predictor that contains the hashes of the models on which it was fitted."""
        return replace(self, models={task: models[task] for task in self.tasks if task in models})

    def save(self, path: Path) -> None:
        """Write the fitted predictor as JSON."""
        with atomic_file(Path(path)) as temporary:
            text = json.dumps({"format": fitted_file.FORMAT, **asdict(self)}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Scorer":
        """Read a fitted predictor from its file, or from the run folder of the analysis that fitted it.

        Args:
            path: the file or the folder.

        Returns:
            The scorer.

        Raises:
            UserError: the file does not exist, or this version cannot read it.
        """
        return cls(**fitted_file.read(path))

    def evidence_for(self, columns: Sequence[str]) -> Evidence:
        """Return the tier of evidence that predicted best among the tiers whose columns are all present.

        Args:
            columns: of the table.

        Returns:
            The tier.

        Raises:
            UserError: the table lacks columns of every tier.
        """
        return self._available(columns)[0]

    def _available(self, columns: Sequence[str]) -> list[Evidence]:
        """List the tiers of evidence whose columns a table contains, the best first."""
        found = [one for one in self.evidence if set(one.metrics) <= set(columns)]
        if found:
            return found
        least = min((one.metrics for one in self.evidence), key=lambda names: len(set(names) - set(columns)))
        missing = [name for name in least if name not in columns]
        raise UserError(
            f"The fitted predictor requires metrics that were not measured: {summarise_names(missing)}."
            " Measure these metrics with metric=…, or fit a predictor on the available metrics."
        )

    def score(self, table: pd.DataFrame, margin: float | int = MARGIN) -> pd.DataFrame:
        """Score every pair, recommend a method, and name the metrics with the largest effect on the score.

        A pair is scored by the best tier that covers it. A tier does not cover a pair if a metric is undefined or lies
        outside the training range by more than `margin` of that range; without any such tier, the pair is not scored.
        The method with the best lower bound is recommended. If a tier's correlation is above 0 for no method, the
        method with the best mean is recommended for every pair, and no metric is named.

        Args:
            table: one row per pair, with `task_a` and `task_b` as columns or as the index.
            margin: share of the training range, at least 0.

        Returns:
            One row per pair: `task_a`, `task_b`; for each method m `score_m` with its interval `score_low_m`,
            `score_high_m`; `recommended`; `driven_by`, the metrics that moved its score most from that of the mean
            pair; `evidence`, the name of the tier; `abstains`, the metrics of the best tier that are out of range,
            empty if the pair is scored. If it abstains, scores are NaN and no method is recommended.

        Raises:
            UserError: the table lacks columns of every tier, its pairs are not named, or the margin is negative.
        """
        if not margin >= 0:
            raise UserError(f"Expected a margin of at least 0, got {margin}.")
        table = with_ends(table)
        parts = [_scored(one, table, margin) for one in self._available(list(table.columns))]
        # Use the first tier that covers the pair; if none does, report the reason of the first tier.
        place = np.array(
            [next((i for i, one in enumerate(parts) if one["knows"][row]), 0) for row in range(len(table))]
        )
        methods = dict.fromkeys(method for one in self.evidence for method in one.methods)

        def chosen(name: str, missing: Any) -> list[Any]:
            return [parts[i][name][row] if name in parts[i] else missing for row, i in enumerate(place)]

        found: dict[str, Any] = {end: table[end] for end in _ENDS}
        for method in methods:
            if not any(f"score_{method}" in one for one in parts):
                continue
            for name in (f"score_{method}", f"score_low_{method}", f"score_high_{method}"):
                found[name] = np.array(chosen(name, float("nan")), dtype=float)
        for name in ("recommended", "driven_by", "abstains", "evidence"):
            found[name] = chosen(name, "")
        return pd.DataFrame(found).reset_index(drop=True)


def with_ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the given table with the columns `task_a` and `task_b`, even if these were its index.

    Args:
        table: the pairs.

    Returns:
        The table with both columns.

    Raises:
        UserError: the tasks are neither in the columns nor in the index.
    """
    if set(_ENDS) <= set(table.columns):
        return table
    if set(_ENDS) <= set(table.index.names):
        return table.reset_index()
    raise UserError(
        f"Expected a table of pairs with task_a and task_b as columns or as its index, got the columns "
        f"{summarise_names([str(name) for name in table.columns])}."
    )


def _scored(evidence: Evidence, table: pd.DataFrame, margin: float | int) -> dict[str, Any]:
    """Score every pair by one tier."""
    scaled = evidence.scaled(table[evidence.metrics].to_numpy(dtype=float))
    weighs = np.any([fit.weights for fit in evidence.methods.values()], axis=0)
    outside = weighs & ~(np.abs(scaled) <= 1 + 2 * margin)
    knows = ~outside.any(axis=1)
    found: dict[str, Any] = {"knows": knows}
    for method, fit in evidence.methods.items():
        score = np.where(knows, fit.intercept + np.nan_to_num(scaled) @ np.array(fit.weights), np.nan)
        found[f"score_{method}"] = score
        found[f"score_low_{method}"] = score - fit.half_width
        found[f"score_high_{method}"] = score + fit.half_width
    names = list(evidence.methods)
    if evidence.informative:
        lower = np.stack([found[f"score_low_{method}"] for method in names], axis=1)
        best = np.argmax(np.nan_to_num(lower, nan=-np.inf), axis=1)
    else:
        best = np.full(
            len(table),
            np.argmax([np.nan if fit.mean is None else fit.mean for fit in evidence.methods.values()]),
        )
    found["recommended"] = [names[m] if known else "" for m, known in zip(best, knows, strict=True)]
    weights = np.array([evidence.methods[names[m]].weights for m in best])
    moved = weights * (scaled - np.array(evidence.means))
    found["driven_by"] = [
        _drivers(evidence.metrics, row) if known and evidence.informative else ""
        for row, known in zip(moved, knows, strict=True)
    ]
    found["evidence"] = [evidence.name if known else "" for known in knows]
    found["abstains"] = [", ".join(np.array(evidence.metrics)[row]) for row in outside]
    return found


def fitted_target(columns: Sequence[str], methods: Sequence[str]) -> str:
    """Return the target to which a predictor is fitted, which is the first target with outcomes in the table."""
    present = set(columns)
    return next(
        (one for one in TARGETS if any(f"{one}_{method}" in present for method in methods)), TARGETS[0]
    )


def transfer_table(scorer: Scorer, table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Compare scores with measured outcomes over all scored pairs.

    Args:
        scorer: the fitted predictor.
        table: pairs with outcomes.
        scores: the result of `scorer.score`.

    Returns:
        One row per method: `r`, Pearson's correlation; `mae`, the mean absolute error, and `mae_of_mean`, that of the
        table's mean; `covered`, the share of pairs inside their interval of mean half-width `half_width`, and `level`,
        its nominal value; `n_pairs` and `n_abstained`, the numbers of pairs scored and not scored; `evidence`, the
        tiers of evidence used.
    """
    table = with_ends(table)
    rows = []
    for method in dict.fromkeys(name for one in scorer.evidence for name in one.methods):
        column = f"{scorer.target}_{method}"
        if column not in table.columns or f"score_{method}" not in scores.columns:
            continue
        measured = table[column].to_numpy(dtype=float)
        score, low, high = (
            scores[f"{name}_{method}"].to_numpy(dtype=float) for name in ("score", "score_low", "score_high")
        )
        known = ~np.isnan(measured) & ~np.isnan(score)
        off, inside = np.abs(measured - score)[known], ((low <= measured) & (measured <= high))[known]
        used = list(dict.fromkeys(scores["evidence"].to_numpy()[known]))
        levels = {one.name: one.methods[method].level for one in scorer.evidence if method in one.methods}
        rows.append(
            {
                "method": method,
                "target": scorer.target,
                "r": pearson_r(score[known], measured[known]),
                "mae": _mean(off),
                "mae_of_mean": _mean(np.abs(measured[known] - measured[known].mean()))
                if known.any()
                else _mean(off),
                "covered": _mean(inside),
                "half_width": _mean((high - low)[known] / 2),
                "level": max((levels[name] for name in used if name in levels), default=float("nan")),
                "n_pairs": int(known.sum()),
                "n_abstained": int((~np.isnan(measured) & np.isnan(score)).sum()),
                "evidence": ", ".join(used),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _drivers(metrics: Sequence[str], moved: np.ndarray) -> str:
    order = np.argsort(-np.abs(moved), kind="stable")[:_DRIVERS]
    return ", ".join(f"{metrics[i]} ({moved[i]:+.3f})" for i in order if moved[i] != 0)
