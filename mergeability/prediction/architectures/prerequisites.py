"""Test whether good merges require gradient alignment or subspace overlap under all methods of an architecture."""

import numpy as np
import pandas as pd

from mergeability.prediction.architectures.analyses import architectures_of, seeds_of, tasks_of
from mergeability.prediction.architectures.cells import Cells
from mergeability.prediction.architectures.resampling import Estimate, estimate

FAMILIES: dict[str, dict[str, int]] = {
    "gradient alignment": {
        "encoder_gradient_cosine_similarity": 1,
        "encoder_gradient_dot_product": 1,
        "encoder_gradient_l2_distance": -1,
        "input_gradient_cosine_similarity": 1,
        "input_gradient_dot_product": 1,
        "input_gradient_l2_distance": -1,
    },
    "subspace overlap": {
        "singular_value_overlap": 1,
        "subspace_overlap": 1,
        "right_subspace_overlap_top_k": 1,
        "right_subspace_overlap_bottom_k": 1,
        "interaction_matrix_overlap_top_k": 1,
        "interaction_matrix_overlap_bottom_k": 1,
    },
}
"""Family → metric → the sign that a prerequisite has: better merges for aligned gradients and shared subspaces."""

COLUMNS = [
    "architecture",
    "family",
    "metric",
    "expected",
    "methods",
    "as_expected",
    "clear",
    "against",
    "foundational",
]


def prerequisite_table(of_methods: pd.DataFrame) -> pd.DataFrame:
    """Count, for each metric of `FAMILIES`, the methods whose outcomes correlate with the metric as expected.

    Args:
        of_methods: the result of `method_signs`.

    Returns:
        One row per architecture and metric: the `expected` sign; `methods`, their number; under how many of them r has
        that sign (`as_expected`), its 95 % interval lies on that side of 0 (`clear`), or on the other (`against`);
        `foundational`, whether it is clear under every method.
    """
    rows = []
    for family, metrics in FAMILIES.items():
        for metric, expected in metrics.items():
            chosen = of_methods[of_methods["metric"] == metric]
            for architecture, own in chosen.groupby("architecture", sort=False):
                r = own["r"].to_numpy(float) * expected
                ends = own[["r_low", "r_high"]].to_numpy(float) * expected
                clear, against = ends.min(axis=1) > 0, ends.max(axis=1) < 0
                rows.append(
                    {
                        "architecture": architecture,
                        "family": family,
                        "metric": metric,
                        "expected": expected,
                        "methods": len(own),
                        "as_expected": int((r > 0).sum()),
                        "clear": int(clear.sum()),
                        "against": int(against.sum()),
                        "foundational": bool(clear.all()),
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def family_correlation(cells: Cells, family: str, architecture: str | None = None) -> Estimate:
    """Average r over all cells and over the metrics of a family; r is negated for metrics whose expected r is negative.

    Args:
        cells: the methods of every architecture and seed.
        family: of `FAMILIES`.
        architecture: only its cells; all when None.
    """
    places = [place for place, metric in enumerate(cells.metrics) if metric in FAMILIES[family]]
    signs = np.array([FAMILIES[family][cells.metrics[place]] for place in places], dtype=float)
    names = architectures_of(list(cells.tables.values())) if architecture is None else [architecture]
    own = np.array([name in names for name, _, _ in cells.names], dtype=bool)
    of_seed = np.array([seed for _, seed, _ in cells.names])

    def statistic(task: str | None, seed: int | None) -> float:
        kept = own if seed is None else own & (of_seed != seed)
        values = (cells.correlations(task)[kept][:, places] * signs).ravel()
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    tables = [table for (name, _), table in cells.tables.items() if name in names]
    return estimate(statistic, tasks_of(tables), seeds_of(tables))
