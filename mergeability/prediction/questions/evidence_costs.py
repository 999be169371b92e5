"""Compare the accuracy and the cost of each kind of evidence for pairs of two new models."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mergeability.prediction.validation.protocols import BOTH_NEW

# Cost of the evidence → its predictor, which is fixed in advance to avoid selection bias.
EVIDENCE = {
    "mean": ("none", "the mean outcome of earlier merges"),
    "ridge": ("no merge", "the metrics of the two models"),
    "functional": ("no merge", "unlabelled images through the models"),
    "known": ("no merge", "how well the base already does each task"),
    "probe": ("a probe", "unlabelled images through the merge itself"),
}
COLUMNS = [
    "cost", "rests_on", "r", "r_low", "r_high", "informative", "half_width", "coverage", "level", "regret",
    "fixed_regret", "n_methods",
]  # fmt: skip


def evidence_costs(
    records: Sequence[Mapping[str, Any]], tables: Mapping[str, pd.DataFrame], target: str
) -> pd.DataFrame:
    """Compare how well each kind of evidence predicts pairs whose two tasks were left out of the training set.

    Args:
        records: scores of predictors, as in `prediction.json`.
        tables: tables of the study; `intervals` and `method_choice` are used.
        target: `norm_acc` or `acc`.

    Returns:
        One row per predictor that represents a kind of evidence, indexed by its name: `cost` and `rests_on` in words;
        `r`, `r_low` and `r_high`, means over methods of the correlation beyond the training mean and the ends of its
        95 % interval, 0 for a method whose predictions do not vary around that mean; `informative`, the number of
        methods whose interval is above 0; `half_width` of prediction intervals, their measured `coverage` and their
        nominal `level`; `regret` of choosing the method by the predictor and `fixed_regret` of always taking the best
        on average; `n_methods`. The table is empty if no pair of two new tasks was predicted.
    """
    frame = pd.DataFrame([r for r in records if r["situation"] == BOTH_NEW and r["target"] == target])
    if frame.empty:
        return pd.DataFrame(columns=COLUMNS)
    protocol = frame["protocol"].iloc[0]
    frame = frame[frame["protocol"] == protocol]
    rows = {}
    for name, (cost, rests_on) in EVIDENCE.items():
        own = frame[frame["predictor"] == name]
        if own.empty:
            continue
        ends = own[["r_beyond_mean", "r_beyond_mean_low", "r_beyond_mean_high"]].astype(float).fillna(0.0)
        rows[name] = {
            "cost": cost,
            "rests_on": rests_on,
            **dict(zip(("r", "r_low", "r_high"), ends.mean(), strict=True)),
            "informative": int((ends["r_beyond_mean_low"] > 0).sum()),
            **_means(tables, "intervals", protocol, target, name, ("half_width", "coverage", "level")),
            **_means(tables, "method_choice", protocol, target, name, ("regret", "fixed_regret")),
            "n_methods": len(own),
        }
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=COLUMNS)


def _means(
    tables: Mapping[str, pd.DataFrame],
    name: str,
    protocol: str,
    target: str,
    predictor: str,
    columns: Sequence[str],
) -> dict[str, float]:
    """Average columns of a table of the study over methods; NaN if the table has no such rows."""
    table = tables.get(name, pd.DataFrame())
    if table.empty:
        return dict.fromkeys(columns, float("nan"))
    own = table[
        (table["protocol"] == protocol) & (table["target"] == target) & (table["predictor"] == predictor)
    ]
    return {column: float(own[column].mean()) for column in columns}
