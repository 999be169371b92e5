"""Score predictors that use columns other than the metrics; all predictors are scored on the same pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mergeability.prediction.pair_table import PairTable, summarise_names
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.predictors.own_evidence import own_columns
from mergeability.prediction.validation.evaluate import PredictionResult, evaluate_predictors
from mergeability.prediction.validation.permutation import permutation_test
from mergeability.prediction.validation.protocols import named_protocols

# Strength of ridge in the permutation test: the strength for 28 metrics would shrink one or two columns too much.
_STRENGTH = 0.1


@dataclass(frozen=True)
class OwnEvidence:
    """Hold the results of predictors that use columns other than the metrics.

    Attributes:
        result: their scores and predictions.
        tested: one row per evidence, target and method: the permutation test of its columns, as that of the metrics.
    """

    result: PredictionResult
    tested: pd.DataFrame


def with_own_evidence(
    predictors: Mapping[str, Predictor],
) -> tuple[dict[str, Predictor], dict[str, Predictor]]:
    """Split predictors into those that use the metrics and those that declare other columns."""
    own = {name: one for name, one in predictors.items() if hasattr(one, "columns")}
    return own, {name: one for name, one in predictors.items() if name not in own}


def evidence_columns(
    predictors: Iterable[Predictor], targets: Sequence[str], methods: Sequence[str]
) -> list[str]:
    """List all columns that the predictors may need, without duplicates."""
    found = [
        column
        for predictor in predictors
        for target in targets
        for method in methods
        for columns in own_columns(predictor, target, method)
        for column in columns
    ]
    return list(dict.fromkeys(found))


def joined(first: PredictionResult, second: PredictionResult) -> PredictionResult:
    """Combine two prediction results on the same pair table."""

    def stacked(name: str) -> pd.DataFrame:
        frames = [frame for frame in (getattr(first, name), getattr(second, name)) if len(frame)]
        return pd.concat(frames, ignore_index=True) if frames else getattr(first, name)

    return PredictionResult(
        [*first.records, *second.records],
        stacked("folds"),
        stacked("predictions"),
        stacked("coefficients"),
        [*first.notes, *(note for note in second.notes if note not in first.notes)],
        {**first.tables, **second.tables},
    )


def study_own_evidence(
    predictors: Mapping[str, Predictor], table: PairTable, methods: Sequence[str], settings: Any
) -> OwnEvidence:
    """Score each predictor on the columns that it declares, and test these columns in the same way as metrics.

    A predictor uses the first of its alternatives that all pairs have, or the last one if none is complete. A
    predictor whose columns the table lacks predicts nothing, with a note.

    Args:
        predictors: name → predictor with `columns`.
        table: all pairs, with the columns.
        methods: merge methods.
        settings: the `StudySettings`.

    Returns:
        Scores, and the permutation tests of the columns.
    """
    result, tested, lacking = PredictionResult(), [], {}
    # Test columns once, even if two predictors use them.
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    table = table.complete_metrics()
    if settings.rows == "complete":
        outcomes = [f"{target}_{method}" for target in settings.targets for method in methods]
        known = table.frame[[name for name in outcomes if name in table.frame.columns]].notna().all(axis=1)
        table = replace(table, frame=table.frame[known])
    for name, predictor in predictors.items():
        asked, notes = asked_columns(name, predictor, table, methods, settings.targets)
        if not asked:
            columns = evidence_columns([predictor], settings.targets, methods)
            lacking[name] = columns
        for (target, columns), own_methods in asked.items():
            own = table.select(columns, [f"{target}_{method}" for method in own_methods])
            found = evaluate_predictors(
                own, columns, {name: predictor}, own_methods, [target], named_protocols(settings.protocols)
            )
            result = joined(result, found)
            outcomes = [(target, method) for method in own_methods if (target, method, columns) not in seen]
            seen.update((target, method, columns) for method in own_methods)
            if not outcomes:
                continue
            rows = permutation_test(
                own, outcomes, settings.permutations, settings.seed, strength=_STRENGTH
            ).methods
            tested.append(rows.assign(evidence=name, columns=" + ".join(columns)))
        result = joined(result, PredictionResult(notes=notes))
    if lacking:
        missing = summarise_names(list(dict.fromkeys(one for columns in lacking.values() for one in columns)))
        note = (
            f"{', '.join(lacking)} predicted nothing: the table has no {missing}. metric=[paper,functional] and "
            "probe=64 measure them."
        )
        result = joined(result, PredictionResult(notes=[note]))
    return OwnEvidence(result, pd.concat(tested, ignore_index=True) if tested else pd.DataFrame())


def asked_columns(
    name: str, predictor: Predictor, table: PairTable, methods: Sequence[str], targets: Sequence[str]
) -> tuple[dict[tuple[str, tuple[str, ...]], list[str]], list[str]]:
    """Group merge methods by target and by the columns that the predictor uses.

    Returns:
        (target, columns) → methods whose columns are in the table; and sentences about the chosen columns.
    """
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    notes: list[str] = []
    for target in targets:
        for method in methods:
            outcome = f"{target}_{method}"
            if outcome not in table.frame.columns or table.frame[outcome].isna().all():
                continue
            rows = table.frame[table.frame[outcome].notna()]
            there = [
                columns
                for columns in own_columns(predictor, target, method)
                if set(columns) <= set(rows.columns) and rows[list(columns)].notna().any().all()
            ]
            whole = [columns for columns in there if rows[list(columns)].notna().all(axis=None)]
            chosen = (whole or there[-1:])[:1]
            for columns in chosen:
                found.setdefault((target, columns), []).append(method)
            if len(own_columns(predictor, target, method)) > 1 and chosen:
                notes.append(_said(name, chosen[0], there, rows))
    return found, list(dict.fromkeys(notes))


def _said(name: str, chosen: tuple[str, ...], there: Sequence[tuple[str, ...]], rows: pd.DataFrame) -> str:
    """Describe the chosen columns, and the number of pairs for which preferred columns are complete."""
    sentence = f"{name} looks at {', '.join(chosen)}."
    for columns in there[: there.index(chosen)]:
        count = int(rows[list(columns)].notna().all(axis=1).sum())
        sentence += f" {', '.join(columns)} is known for {count} of {len(rows)} pairs only."
    return sentence
