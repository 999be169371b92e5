"""A fitted predictor: scores pairs that nobody merged, and abstains outside what it was fitted on."""

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
    """Predicts outcomes of pairs from the evidence about them.

    Attributes:
        target: the outcome, `norm_acc` or `acc`.
        tasks: whose pairs it was fitted on.
        evidence: tiers of evidence, the one that predicted pairs of two unseen tasks best first. Each pair is scored by
            the first tier that it has and whose range it lies in.
        models: task → SHA-256 of the fine-tuned model, where it is known, to recognise models of the fit.
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
        """Fit ridge for every method and tier, its strength and its interval by leaving two tasks out.

        Probes of the merges in the table (`probe_overlap_<method>`, `probe_confidence_<method>`) are a tier
        of their own, which needs no fit.

        Args:
            table: pairs, their metrics and outcomes; a data frame is checked first.
            metrics: the columns of the first tier, `metrics`.
            methods: merge methods with outcomes.
            tiers: name → columns of further tiers, for models of which less is known or that differ in size; those
                that the table lacks are left out, and a tier without any is not fitted.

        Raises:
            UserError: as `PairTable.validate`.
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
        """Return this predictor with the hashes of the models that it was fitted on."""
        return replace(self, models={task: models[task] for task in self.tasks if task in models})

    def save(self, path: Path) -> None:
        """Write the scorer as JSON."""
        with atomic_file(Path(path)) as temporary:
            text = json.dumps({"format": fitted_file.FORMAT, **asdict(self)}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Scorer":
        """Read a scorer from its file, or from the folder of the analysis that fitted it.

        Raises:
            UserError: there is none, or it is not one that this version reads.
        """
        return cls(**fitted_file.read(path))

    def evidence_for(self, columns: Sequence[str]) -> Evidence:
        """Choose the best tier that a table has.

        Raises:
            UserError: it has none of them whole.
        """
        return self._available(columns)[0]

    def _available(self, columns: Sequence[str]) -> list[Evidence]:
        """List the tiers that a table has, the best first."""
        found = [one for one in self.evidence if set(one.metrics) <= set(columns)]
        if found:
            return found
        least = min((one.metrics for one in self.evidence), key=lambda names: len(set(names) - set(columns)))
        missing = [name for name in least if name not in columns]
        raise UserError(
            f"The fitted predictor needs metrics that were not measured: {summarise_names(missing)}. "
            "Measure them with metric=…, or fit on those there are."
        )

    def score(self, table: pd.DataFrame, margin: float | int = MARGIN) -> pd.DataFrame:
        """Score every pair, recommend a method, and say what drove its score.

        A pair is scored by the best tier that knows it. A tier does not know a pair where a metric is undefined or lies
        outside the range of the fit by more than `margin` of that range; where no tier does, the pair is not scored.
        The method with the best lower bound is recommended; where a tier's correlation is above 0 for no method, that
        with the best mean is recommended for every pair, and nothing is said to drive it.

        Args:
            table: one row per pair, with `task_a` and `task_b` as columns or as the index.
            margin: as above, at least 0.

        Returns:
            One row per pair: `task_a`, `task_b`; for each method m `score_m` with its interval `score_low_m`,
            `score_high_m`; `recommended`; `driven_by`, the metrics that moved its score most from that of the mean
            pair; `evidence`, the name of the tier; `abstains`, the metrics of the best tier that are outside, empty
            where the pair is scored. Where it abstains, scores are NaN and nothing is recommended.

        Raises:
            UserError: the table has no tier whole, its pairs are not named, or the margin is negative.
        """
        if not margin >= 0:
            raise UserError(f"Expected a margin of at least 0, got {margin}.")
        table = with_ends(table)
        parts = [_scored(one, table, margin) for one in self._available(list(table.columns))]
        # The first part that knows the pair; where none does, the first says why.
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
    """Return a table of pairs with the columns `task_a` and `task_b`, which may have been its index.

    Raises:
        UserError: it names its pairs in neither way.
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
    """Return the target that a scorer is fitted on: the first that a table has outcomes of."""
    present = set(columns)
    return next(
        (one for one in TARGETS if any(f"{one}_{method}" in present for method in methods)), TARGETS[0]
    )


def transfer_table(scorer: Scorer, table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Compare scores with the outcomes a table has: one row per method, over the pairs that were scored.

    `r` is Pearson's correlation, `mae` the mean absolute error, `mae_of_mean` that of the table's own mean; `covered`
    the share of pairs inside their interval of mean half-width `half_width`, `level` the share that was meant to be;
    `n_pairs` how many were scored, `n_abstained` how many were not; `evidence` the tiers that scored them.
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
