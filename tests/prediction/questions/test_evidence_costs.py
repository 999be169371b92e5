"""What evidence is worth and costs: means over methods by hand, from the records of one protocol."""

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction.questions.evidence_costs import COLUMNS, evidence_costs


def _record(predictor, method, r, low, high, target="norm_acc", situation="both new", protocol="l2to"):
    return {
        "predictor": predictor, "method": method, "target": target, "situation": situation, "protocol": protocol,
        "r_beyond_mean": r, "r_beyond_mean_low": low, "r_beyond_mean_high": high,
    }  # fmt: skip


RECORDS = [
    _record("mean", "ties", None, None, None),
    _record("mean", "tsv", None, None, None),
    _record("functional", "ties", 0.6, 0.2, 0.8),
    _record("functional", "tsv", 0.4, -0.1, 0.6),
    _record("functional", "ties", 0.9, 0.8, 1.0, situation="known partner", protocol="loto"),
    _record("functional", "ties", 0.9, 0.8, 1.0, target="acc"),
    _record("functional", "ties", 0.9, 0.8, 1.0, protocol="halves"),
    _record("lasso", "ties", 0.9, 0.8, 1.0),
    _record("ridge", "ties", None, None, None),
]
TABLES = {
    "intervals": pd.DataFrame(
        [
            ("l2to", "norm_acc", "ties", "functional", 0.1, 0.9, 0.9),
            ("l2to", "norm_acc", "tsv", "functional", 0.3, 0.8, 0.9),
            ("loto", "norm_acc", "tsv", "functional", 9.0, 0.1, 0.9),
        ],
        columns=["protocol", "target", "method", "predictor", "half_width", "coverage", "level"],
    ),
    "method_choice": pd.DataFrame(
        [("l2to", "norm_acc", "functional", 0.02, 0.05)],
        columns=["protocol", "target", "predictor", "regret", "fixed_regret"],
    ),
}


def test_means_over_methods_by_hand():
    found = evidence_costs(RECORDS, TABLES, "norm_acc")
    assert list(found.index) == ["mean", "ridge", "functional"]
    assert list(found.columns) == COLUMNS
    row = found.loc["functional"]
    assert [row["r"], row["r_low"], row["r_high"]] == pytest.approx([0.5, 0.05, 0.7])
    assert (row["informative"], row["n_methods"]) == (1, 2)
    assert [row["half_width"], row["coverage"], row["level"]] == pytest.approx([0.2, 0.85, 0.9])
    assert [row["regret"], row["fixed_regret"]] == [0.02, 0.05]
    assert row["cost"] == "no merge"


def test_nothing_predicted_is_a_correlation_of_0_and_unknown_widths_stay_unknown():
    row = evidence_costs(RECORDS, {}, "norm_acc").loc["ridge"]
    assert [row["r"], row["r_low"], row["informative"]] == [0, 0, 0]
    assert np.isnan(row["half_width"])
    assert np.isnan(row["regret"])


def test_without_pairs_of_two_new_tasks_there_is_no_row():
    known = [record for record in RECORDS if record["situation"] == "known partner"]
    assert len(evidence_costs(known, TABLES, "norm_acc")) == 0
    assert len(evidence_costs([], {}, "norm_acc")) == 0
