"""Compute the pair table: every metric of every pair of models."""

import logging
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from mergeability.errors import UserError
from mergeability.metrics.catalogue import PAPER, WEIGHT_SPACE, Metric, metrics_called
from mergeability.metrics.traits import documented_range, traits_of
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

logger = logging.getLogger(__name__)

# Float32 factors are orthonormal to about 1e-6: an excess below this is rounding and is rounded away.
_TOLERANCE = 1e-5


def measure(
    profiles: Profiles | TaskVectors,
    metrics: Mapping[str, Metric] | Iterable[str] | None = None,
    *,
    on_error: str = "raise",
) -> pd.DataFrame:
    """Compute pairwise metrics of all pairs of models.

    Undefined values are NaN: for example, a model equal to its base has no direction. The
    sentences in `table.attrs["failures"]` and `table.attrs["undefined"]` list the NaN values and their causes.

    Args:
        profiles: the models; task vectors are enough for the metrics of weight space.
        metrics: names of the catalogue, or name → function from profiles to a T×T matrix. By default the 28 of arXiv
            2601.22285 if the profiles have views, and otherwise the 18 of these that need no data.
        on_error: "raise" stops at a value that cannot be computed, "nan" writes NaN and continues.

    Returns:
        A float64 table indexed by (task_a, task_b) in the order of the tasks, with T(T − 1)/2 rows and one column per
        metric.

    Raises:
        UserError: there are fewer than two models, a metric lacks its data, or a metric failed or left its documented
            range; the message names the metric, the pair and the value.

    Examples:
        >>> from mergeability import measure
        >>> from mergeability.examples import tiny_task_vectors
        >>> table = measure(tiny_task_vectors())
        >>> table.shape
        (3, 18)
        >>> table[["task_vector_dot_product", "weight_space_angle"]].round(1)
                       task_vector_dot_product  weight_space_angle
        task_a task_b
        cars   dtd                         6.0                31.9
               svhn                       -1.0                98.1
        dtd    svhn                       -2.0               113.6
    """
    if on_error not in ("raise", "nan"):
        raise UserError(f"Expected on_error='raise' or on_error='nan', got {on_error!r}.")
    if isinstance(profiles, TaskVectors):
        profiles = Profiles(profiles)
    if len(profiles.tasks) < 2:
        raise UserError(f"Expected at least two models to compare, got {len(profiles.tasks)}.")
    if metrics is None:
        metrics = WEIGHT_SPACE if profiles.views is None else PAPER
    elif not isinstance(metrics, Mapping):
        metrics = metrics_called(metrics)
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
    """Raise an error for metrics without data before anything is computed."""
    needing = [name for name, metric in metrics.items() if traits_of(metric).needs_data]
    if needing:
        raise UserError(
            f"{len(needing)} of the {len(metrics)} metrics, such as {needing[0]}, require images and heads,"
            " but none were given. Request only metrics of the weights, by metric=weights or by names such"
            " as metric=[weights,sign_conflict]."
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
            f"Expected metric {name} to return a {len(tasks)}×{len(tasks)} matrix, got {matrix.shape}."
        )
    values = np.array(matrix[rows, columns], dtype=np.float64)
    low, high = documented_range(metric)
    slack = _TOLERANCE * (high if np.isfinite(high) else 1)
    # Infinity is never valid; NaN means "undefined" and is allowed.
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


def _undefined(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each metric that is undefined for some pairs."""
    missing = table.isna().sum()
    return [
        f"{name} has no value for {count} of {len(table)} pairs" for name, count in missing.items() if count
    ]
