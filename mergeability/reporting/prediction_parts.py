"""Provide tables, records and menus to the sections on prediction."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mergeability.prediction.validation.protocols import KNOWN_PARTNER
from mergeability.reporting.page import (
    Choice,
)
from mergeability.reporting.summaries import (
    TARGET_NAMES,
    Analysis,
    best_predictor,
    method_table,
)


def target_choice(analysis: Analysis) -> Choice:
    """Return the drop-down menu of outcomes."""
    return ("outcome", [(target, TARGET_NAMES[target]) for target in analysis.targets])


def study_table(analysis: Analysis, name: str) -> pd.DataFrame:
    """Return the named table of the study of predictors, or an empty table if there is none of this name."""
    prediction = analysis.prediction
    return pd.DataFrame() if prediction is None else prediction.tables.get(name, pd.DataFrame())


def study_records(analysis: Analysis, situation: str) -> list[dict[str, Any]]:
    """Return the records of the first validation protocol with the given situation (one or two new tasks per pair)."""
    prediction = analysis.prediction
    if prediction is None:
        return []
    first = first_protocol(analysis, situation)
    return [record for record in prediction.records if record["protocol"] == first]


def first_protocol(analysis: Analysis, situation: str) -> str:
    """Return the name of the first validation protocol with the given situation, or an empty string if none has it."""
    records = analysis.prediction.records if analysis.prediction is not None else []
    return next((record["protocol"] for record in records if record["situation"] == situation), "")


def predictor_choice(analysis: Analysis, rows: pd.DataFrame) -> Choice:
    """Return the drop-down menu of predictors, with the best predictor first."""
    names: Sequence[str] = list(dict.fromkeys(rows["predictor"].astype(str)))
    shown = [record for record in study_records(analysis, KNOWN_PARTNER) if record["predictor"] in names]
    best = best_predictor(shown, str(rows["target"].iloc[0]))
    ordered = sorted(names, key=lambda name: name != best)
    return ("predictor", [(name, name) for name in ordered])


def fit_choices(analysis: Analysis, rows: pd.DataFrame) -> list[Choice]:
    """Return the drop-down menus of methods and predictors for a figure of predictions."""
    methods = method_table(analysis.pairs, list(dict.fromkeys(rows["method"])), analysis.alphas).index
    return [
        target_choice(analysis),
        ("method", [(str(m), str(m)) for m in methods]),
        predictor_choice(analysis, rows),
    ]
