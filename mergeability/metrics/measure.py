"""The pair table: every metric of every pair of models."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from mergeability.errors import UserError
from mergeability.metrics import gram, rank, sign, subspace
from mergeability.metrics import same_samples as shared
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

logger = logging.getLogger(__name__)

Metric = Callable[[Profiles], np.ndarray]

# The published 28, by what they look at.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "geometry": (
        "task_vector_cosine_similarity",
        "task_vector_l2_distance",
        "task_vector_dot_product",
        "weight_space_angle",
        "task_vector_magnitude_ratio",
    ),
    "effective rank": (
        "effective_rank",
        "effective_rank_mergeability_score",
        "stable_rank",
        "spectral_gap",
        "singular_value_ratio",
        "layerwise_effective_rank",
        "layerwise_effective_rank_mergeability_score",
    ),
    "subspace": (
        "singular_value_overlap",
        "subspace_overlap",
        "right_subspace_overlap_top_k",
        "right_subspace_overlap_bottom_k",
        "interaction_matrix_overlap_top_k",
        "interaction_matrix_overlap_bottom_k",
    ),
    "activation": (
        "activation_l2_distance",
        "activation_cosine_similarity",
        "activation_magnitude_ratio",
        "activation_dot_product",
    ),
    "gradient": (
        "encoder_gradient_cosine_similarity",
        "encoder_gradient_l2_distance",
        "encoder_gradient_dot_product",
        "input_gradient_cosine_similarity",
        "input_gradient_l2_distance",
        "input_gradient_dot_product",
    ),
}

# The 18 that need no data, then all 28, by the published names; `conf/metric` says the same in YAML.
WEIGHT_SPACE: dict[str, partial] = {
    "task_vector_cosine_similarity": partial(gram.cosine_similarity, view="task_vector"),
    "task_vector_l2_distance": partial(gram.l2_distance, view="task_vector"),
    "task_vector_dot_product": partial(gram.dot_product, view="task_vector"),
    "weight_space_angle": partial(gram.angle, view="task_vector"),
    "task_vector_magnitude_ratio": partial(gram.magnitude_ratio, view="task_vector"),
    "effective_rank": partial(rank.effective_rank, view="task_vector"),
    "effective_rank_mergeability_score": partial(rank.mergeability_score, view="task_vector"),
    "stable_rank": partial(rank.stable_rank, view="task_vector"),
    "spectral_gap": partial(rank.spectral_gap, view="task_vector"),
    "singular_value_ratio": partial(rank.singular_value_ratio, view="task_vector"),
    "layerwise_effective_rank": partial(rank.layerwise_effective_rank, view="task_vector"),
    "layerwise_effective_rank_mergeability_score": partial(
        rank.layerwise_mergeability_score, view="task_vector"
    ),
    "singular_value_overlap": partial(subspace.singular_value_overlap, count=100),
    "subspace_overlap": partial(subspace.left_overlap, k=10),
    "right_subspace_overlap_top_k": partial(subspace.right_overlap, end="top", k=10),
    "right_subspace_overlap_bottom_k": partial(subspace.right_overlap, end="bottom", k=10),
    "interaction_matrix_overlap_top_k": partial(subspace.interaction_overlap, end="top", k=10),
    "interaction_matrix_overlap_bottom_k": partial(subspace.interaction_overlap, end="bottom", k=10),
}
PAPER: dict[str, partial] = {
    **WEIGHT_SPACE,
    "activation_l2_distance": partial(gram.l2_distance, view="activation"),
    "activation_cosine_similarity": partial(gram.cosine_similarity, view="activation"),
    "activation_magnitude_ratio": partial(gram.magnitude_ratio, view="activation"),
    "activation_dot_product": partial(gram.dot_product, view="activation"),
    "encoder_gradient_cosine_similarity": partial(gram.cosine_similarity, view="encoder_gradient"),
    "encoder_gradient_l2_distance": partial(gram.l2_distance, view="encoder_gradient"),
    "encoder_gradient_dot_product": partial(gram.dot_product, view="encoder_gradient"),
    "input_gradient_cosine_similarity": partial(gram.cosine_similarity, view="input_gradient"),
    "input_gradient_l2_distance": partial(gram.l2_distance, view="input_gradient"),
    "input_gradient_dot_product": partial(gram.dot_product, view="input_gradient"),
}

# The published ones without those that are a constant minus another: the gap is 1 − the ratio, a score 2 − its
# rank. More of them are functions of each other, but not linear ones.
MINIMAL: dict[str, partial] = {
    name: metric
    for name, metric in PAPER.items()
    if name != "spectral_gap" and not name.endswith("_mergeability_score")
}
# Beyond the published ones.
EXTRA: dict[str, partial] = {
    "subspace_overlap_excess": partial(subspace.left_overlap_excess, k=10),
    "right_subspace_overlap_top_k_excess": partial(subspace.right_overlap_excess, end="top", k=10),
    "right_subspace_overlap_bottom_k_excess": partial(subspace.right_overlap_excess, end="bottom", k=10),
    "interaction_matrix_overlap_top_k_excess": partial(subspace.interaction_overlap_excess, end="top", k=10),
    "interaction_matrix_overlap_bottom_k_excess": partial(
        subspace.interaction_overlap_excess, end="bottom", k=10
    ),
    "sign_conflict": partial(sign.sign_conflict, density=0.2),
    "activation_linear_cka": partial(gram.linear_cka),
}
# Both models on the same samples: two passes per pair instead of one per model.
SHARED: dict[str, partial] = {
    "shared_encoder_gradient_cosine_similarity": partial(shared.cosine_similarity, view="encoder_gradient"),
    "shared_encoder_gradient_l2_distance": partial(shared.l2_distance, view="encoder_gradient"),
    "shared_encoder_gradient_dot_product": partial(shared.dot_product, view="encoder_gradient"),
    "shared_input_gradient_cosine_similarity": partial(shared.cosine_similarity, view="input_gradient"),
    "shared_input_gradient_l2_distance": partial(shared.l2_distance, view="input_gradient"),
    "shared_input_gradient_dot_product": partial(shared.dot_product, view="input_gradient"),
}
_NEED_DATA = {*PAPER, "activation_linear_cka", *SHARED} - WEIGHT_SPACE.keys()

# Documented ranges, by function, so that they hold for every metric made of it.
_RANGES: dict[Callable, tuple[float, float]] = {
    gram.cosine_similarity: (-1, 1),
    gram.l2_distance: (0, np.inf),
    gram.angle: (0, 180),
    gram.magnitude_ratio: (0, 1),
    rank.effective_rank: (1, 2),
    rank.mergeability_score: (0, 1),
    rank.stable_rank: (1, 2),
    rank.spectral_gap: (0, 1),
    rank.singular_value_ratio: (0, 1),
    rank.layerwise_effective_rank: (1, 2),
    rank.layerwise_mergeability_score: (0, 1),
    subspace.singular_value_overlap: (0, 1),
    subspace.left_overlap: (0, 1),
    subspace.right_overlap: (0, 1),
    subspace.interaction_overlap: (0, 1),
    subspace.left_overlap_excess: (-1, 1),
    subspace.right_overlap_excess: (-1, 1),
    subspace.interaction_overlap_excess: (-1, 1),
    sign.sign_conflict: (0, 1),
    gram.linear_cka: (0, 1),
    shared.cosine_similarity: (-1, 1),
    shared.l2_distance: (0, np.inf),
}
# Float32 factors are orthonormal to about 1e-6: an excess below this is rounding and is rounded away.
_TOLERANCE = 1e-5


def measure(
    profiles: Profiles | TaskVectors,
    metrics: Mapping[str, Metric] | None = None,
    *,
    on_error: str = "raise",
) -> pd.DataFrame:
    """Measure every pair of models: a table indexed by (task_a, task_b) in task order, one column a metric.

    What a metric leaves undefined (a model equal to its base has no direction) is NaN. The sentences in
    `table.attrs["failures"]` and `table.attrs["undefined"]` say which values are NaN, and why.

    Args:
        profiles: the models; task vectors alone serve the metrics of weight space.
        metrics: name → function from profiles to a T×T matrix. By default the 18 of weight space, or all 28
            where the profiles have views.
        on_error: "nan" writes NaN for a value that could not be computed and goes on, "raise" stops.

    Raises:
        UserError: fewer than two models, or a metric without its data, or one that failed or left its
            documented range, naming metric, pair and value.
    """
    if on_error not in ("raise", "nan"):
        raise UserError(f"Expected on_error to be 'raise' or 'nan', got {on_error!r}.")
    if isinstance(profiles, TaskVectors):
        profiles = Profiles(profiles)
    if len(profiles.tasks) < 2:
        raise UserError(f"Expected at least two models to compare, got {len(profiles.tasks)}.")
    if metrics is None:
        metrics = WEIGHT_SPACE if profiles.views is None else PAPER
    if profiles.views is None and on_error == "raise":
        _check_data(metrics)
    failures: list[str] = []
    columns = {name: _column(name, metric, profiles, on_error, failures) for name, metric in metrics.items()}
    table = pd.DataFrame(columns, index=_pair_index(profiles.tasks), dtype=np.float64)
    for failure in failures:
        logger.warning("%s", failure)
    table.attrs["failures"] = failures
    table.attrs["undefined"] = [*_undefined(table), *profiles.remarks]
    return table


def _check_data(metrics: Mapping[str, Metric]) -> None:
    """Say at once, and not after all else was computed, that some metrics have no data."""
    needing = [name for name in metrics if name in _NEED_DATA]
    if needing:
        raise UserError(
            f"{len(needing)} of the {len(metrics)} metrics need images and heads, such as {needing[0]}, and there "
            "are none. Ask for the metrics of weight space only: metric=weights, or names as in "
            "metric=[weights,sign_conflict]."
        )


def _pair_index(tasks: tuple[str, ...]) -> pd.MultiIndex:
    pairs = [(a, b) for position, a in enumerate(tasks) for b in tasks[position + 1 :]]
    return pd.MultiIndex.from_tuples(pairs, names=["task_a", "task_b"])


def _column(name: str, metric: Metric, profiles: Profiles, on_error: str, failures: list[str]) -> np.ndarray:
    """Compute one metric for all pairs, in the order of the table."""
    tasks = profiles.tasks
    rows, columns = np.triu_indices(len(tasks), k=1)
    try:
        matrix = metric(profiles)
    except (UserError, torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
        if on_error == "raise":
            raise UserError(f"Metric {name} failed for {', '.join(tasks)}: {error}") from error
        failures.append(f"Metric {name} failed for all pairs: {error}")
        return np.full(len(rows), np.nan)
    if matrix.shape != (len(tasks), len(tasks)):
        raise UserError(
            f"Expected metric {name} to give a {len(tasks)}×{len(tasks)} matrix, got {matrix.shape}."
        )
    values = np.array(matrix[rows, columns], dtype=np.float64)
    low, high = documented_range(metric)
    slack = _TOLERANCE * (high if np.isfinite(high) else 1)
    # Infinity is never a value; NaN is "undefined" and passes.
    outside = (values < low - slack) | (values > high + slack) | np.isinf(values)
    for position in np.flatnonzero(outside):
        sentence = (
            f"Metric {name} of {tasks[rows[position]]} and {tasks[columns[position]]} is {values[position]}, "
            f"outside its range [{low:g}, {high:g}]."
        )
        if on_error == "raise":
            raise UserError(f"{sentence} Check the two checkpoints, or pass on_error='nan'.")
        failures.append(sentence)
    return np.where(outside, np.nan, np.clip(values, low, high))


def documented_range(metric: Metric) -> tuple[float, float]:
    """Return the lowest and the highest value a metric can take; infinite where none is documented."""
    function: Any = metric.func if isinstance(metric, partial) else metric
    low, high = _RANGES.get(function, (-np.inf, np.inf))
    return float(low), float(high)


def _undefined(table: pd.DataFrame) -> list[str]:
    """Say per metric for how many pairs it has no value."""
    missing = table.isna().sum()
    return [
        f"{name} has no value for {count} of {len(table)} pairs" for name, count in missing.items() if count
    ]
