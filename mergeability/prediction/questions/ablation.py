"""Measure the contribution of each category of metrics to prediction."""

from collections.abc import Mapping, Sequence

import pandas as pd

from mergeability.prediction.pair_table import PairTable
from mergeability.prediction.predictors.base import Predictor
from mergeability.prediction.predictors.ridge import Ridge
from mergeability.prediction.validation.evaluate import evaluate_predictors
from mergeability.prediction.validation.protocols import SplitProtocol

COLUMNS = [
    "protocol", "target", "method", "category", "n_metrics", "score", "whole", "without", "delta", "alone",
]  # fmt: skip


def category_ablation(
    table: PairTable,
    categories: Mapping[str, Sequence[str]],
    outcomes: Sequence[tuple[str, str]],
    protocols: Sequence[SplitProtocol],
    predictor: Predictor | None = None,
) -> pd.DataFrame:
    """Fit predictors without each category of metrics, and with each category alone.

    Args:
        table: the pairs.
        categories: name → metrics; metrics that the table lacks are ignored, as are categories of such metrics alone.
        outcomes: (target, method) of each outcome.
        protocols: splits into training and validation pairs.
        predictor: the regressor to refit; ridge with a nested choice of its strength when None.

    Returns:
        One row per protocol, outcome and category. Scores are the mean r over folds or, if every fold is one pair, r
        beyond the training mean; `score` names the one used. `delta` is `without` - `whole`: below 0 the category is
        missed. Undefined scores are NaN.
    """
    predictor = Ridge() if predictor is None else predictor
    present = {name: [m for m in metrics if m in table.metrics] for name, metrics in categories.items()}
    present = {name: metrics for name, metrics in present.items() if metrics}

    # Use the pairs with all metrics, so that every refit uses the same pairs.
    same_pairs = table.complete_metrics()

    def scores(metrics: Sequence[str]) -> dict[tuple[str, str, str], float]:
        return _scores(same_pairs, metrics, outcomes, protocols, predictor) if metrics else {}

    whole = scores(table.metrics)
    rows = []
    for category, metrics in present.items():
        without = scores([m for m in table.metrics if m not in metrics])
        alone = scores(metrics)
        for key, value in whole.items():
            protocol, target, method = key
            rest = without.get(key, float("nan"))
            rows.append(
                {
                    "protocol": protocol,
                    "target": target,
                    "method": method,
                    "category": category,
                    "n_metrics": len(metrics),
                    "score": _measure(protocol, protocols),
                    "whole": value,
                    "without": rest,
                    "delta": rest - value,
                    "alone": alone.get(key, float("nan")),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _scores(
    table: PairTable,
    metrics: Sequence[str],
    outcomes: Sequence[tuple[str, str]],
    protocols: Sequence[SplitProtocol],
    predictor: Predictor,
) -> dict[tuple[str, str, str], float]:
    found = {}
    for target in dict.fromkeys(target for target, _ in outcomes):
        methods = [method for one, method in outcomes if one == target]
        result = evaluate_predictors(table, metrics, {"refitted": predictor}, methods, [target], protocols)
        for record in result.records:
            name = _measure(record["protocol"], protocols)
            value = record[name]
            found[record["protocol"], target, record["method"]] = float("nan") if value is None else value
    return found


def _measure(protocol: str, protocols: Sequence[SplitProtocol]) -> str:
    return "r_beyond_mean" if next(one.many for one in protocols if one.name == protocol) else "r_mean"
