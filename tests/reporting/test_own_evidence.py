"""The report keeps predictors with evidence of their own apart, and scales in any combination."""

import pandas as pd
import pytest

from mergeability.pipeline.result import Analysis
from mergeability.reporting import headline
from mergeability.reporting.summaries import best_predictor, scale_table


def record(predictor, r):
    return {
        "method": "ties", "predictor": predictor, "target": "norm_acc", "protocol": "loto", "situation": "known partner",
        "r_mean": r, "r_std": 0.1, "mae": 0.1, "pooled_r": r, "rho_mean": r, "r2_over_training_mean": r, "train_r_mean": r,
        "n_folds": 4, "n_undefined": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["known", "functional", "probe", "additive_probe"])
def test_what_looks_at_columns_of_its_own_is_no_predictor_from_metrics(name):
    assert best_predictor([record("ridge", 0.3), record(name, 0.9)], "norm_acc") == "ridge"


@pytest.mark.parametrize(
    "kinds", [["", "_unlabelled"], ["_tuned", "_unlabelled"], ["", "_tuned", "_unlabelled"]]
)
def test_scales_of_any_kinds_are_summarised(kinds):
    methods = [f"ties{kind}" for kind in kinds]
    pairs = pd.DataFrame({"task_a": ["a", "a"], "task_b": ["b", "c"]})
    pairs = pairs.assign(
        **{f"{target}_{method}": [0.8, 0.9] for method in methods for target in ("acc", "norm_acc")}
    )
    analysis = Analysis("x", pairs, [], methods, alphas=dict.fromkeys(methods, 1.0))
    sentences = headline._scale_sentences(analysis)
    assert bool(sentences) == ({"", "_tuned"} <= set(kinds))
    assert len(scale_table(analysis)) == ("" in kinds)
