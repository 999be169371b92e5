"""Mean outcomes of every method of every architecture."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.analyses import (
    TARGET,
    Analysis,
    architectures_of,
    methods_of,
    seeds_of,
    tasks_of,
)
from mergeability.prediction.architectures.resampling import estimate

COLUMNS = ["architecture", "method", "norm_acc", "norm_acc_low", "norm_acc_high", "worst", "seeds"]


def outcome_table(analyses: Sequence[Analysis]) -> pd.DataFrame:
    """Average the normalised accuracy of merges over pairs and seeds.

    Args:
        analyses: the pair tables.

    Returns:
        One row per architecture and method: `norm_acc` with its interval over tasks and seeds; `worst`, that of the
        worst pair of any seed; `seeds`. Methods are in the order of the mean over architectures, best first.
    """
    rows = []
    for architecture in architectures_of(analyses):
        own = [one for one in analyses if one.architecture == architecture]
        for method in methods_of(own):
            tables = [one for one in own if method in one.methods]
            column = f"{TARGET}_{method}"

            def statistic(task: str | None, seed: int | None, tables=tables, column=column) -> float:
                means = [
                    one.pairs.loc[
                        (one.pairs["task_a"] != task) & (one.pairs["task_b"] != task), column
                    ].mean()
                    for one in tables
                    if seed is None or one.seed != seed
                ]
                return float(np.mean(means)) if means else float("nan")

            found = estimate(statistic, tasks_of(tables), seeds_of(tables), None)
            labels = {"architecture": architecture, "method": method}
            worst = min(float(one.pairs[column].min()) for one in tables)
            rows.append({**labels, **found.columns("norm_acc"), "worst": worst, "seeds": len(tables)})
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = table.groupby("method", sort=False)["norm_acc"].mean().sort_values(ascending=False, kind="stable")
    places = {name: place for place, name in enumerate(order.index)}
    architectures = {name: place for place, name in enumerate(architectures_of(analyses))}
    keys = pd.DataFrame(
        {"a": table["architecture"].map(architectures), "m": table["method"].map(places)}, index=table.index
    )
    return table.loc[keys.sort_values(["a", "m"], kind="stable").index].reset_index(drop=True)
