"""How much a predictor's score moves when every metric changes by a little.

`python -m benchmarks.predictor_noise PAIRS`: PAIRS is the `pairs.csv` of an analysis, such as
`outputs/demo/pairs.csv`. Each row of the table printed is one random relative change of all metrics; each entry
the mean r over left-out tasks, for normalised accuracy.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd

from mergeability.metrics.catalogue import PAPER
from mergeability.prediction import evaluate_predictors
from mergeability.prediction.pair_table import outcome_methods
from mergeability.prediction.predictors.lasso import Lasso
from mergeability.prediction.predictors.pearson import Pearson

# As in `conf/predictor/pearson_l1.yaml`.
_PUBLISHED: dict[str, Any] = {
    "penalty": 1.0,
    "initial_std": 0.1,
    "sum_to_one": False,
    "learning_rate": 0.01,
    "max_steps": 2000,
    "patience": 100,
    "tolerance": 1e-5,
    "cutoff": 1e-3,
}
_SCALES = (0.0, 1e-7, 1e-7, 1e-5, 1e-5, 1e-3)


def main() -> None:
    """Print the table."""
    pairs = pd.read_csv(sys.argv[1], dtype={"task_a": str, "task_b": str})
    names, methods = [name for name in PAPER if name in pairs.columns], outcome_methods(pairs)
    predictors: dict[str, Any] = {
        "pearson_l1": Pearson(**_PUBLISHED),
        "lasso": Lasso(),
    }
    print(f"| predictor | relative change | {' | '.join(methods)} |")
    print(f"|---|---|{'---|' * len(methods)}")
    for seed, scale in enumerate(_SCALES):
        noise = np.random.default_rng(seed).standard_normal((len(pairs), len(names)))
        changed = pairs.assign(
            **{name: pairs[name] * (1 + scale * noise[:, i]) for i, name in enumerate(names)}
        )
        records = evaluate_predictors(changed, names, predictors, methods).records
        found = {(one["predictor"], one["method"]): one for one in records if one["target"] == "norm_acc"}
        for predictor in predictors:
            row = " | ".join(f"{found[predictor, method]['r_mean']:.2f}" for method in methods)
            print(f"| {predictor} | {scale:g} | {row} |", flush=True)


if __name__ == "__main__":
    main()
