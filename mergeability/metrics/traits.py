"""Declare traits of metrics by a decorator: range, category and required data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

# The only view that needs no data, and the categories of metrics of other views.
WEIGHTS = "task_vector"
_CATEGORIES = {"encoder_gradient": "gradient", "input_gradient": "gradient"}


@dataclass(frozen=True)
class Traits:
    """Hold the traits of a metric: category, symmetry, range and required data.

    Attributes:
        category: group of the metric; determined by the view if `view` is not the task vector.
        low: the lowest value it can take.
        high: the highest.
        equal: its value for two copies of one model; None if it depends on the model.
        needs_data: whether it needs calibration images and heads; a view other than the task vector always does.
        per_pair: whether it needs passes over the data for each pair; if so, it is in the set `shared`, not in `all`.
        on_request: whether it is excluded from the set `weights`; it is measured by name or with `all`.

    Examples:
        >>> from mergeability.metrics.traits import Traits
        >>> cosine = Traits("geometry", low=-1, high=1, equal=1)
        >>> cosine.with_options({"view": "activation"}).needs_data
        True
    """

    category: str
    low: float | int = -math.inf
    high: float | int = math.inf
    equal: float | int | None = None
    needs_data: bool = False
    per_pair: bool = False
    on_request: bool = False

    def with_options(self, options: Mapping[str, Any]) -> "Traits":
        """Return the traits for given options, of which only `view` matters."""
        view = options.get("view", WEIGHTS)
        if view == WEIGHTS:
            return self
        return replace(self, category=_CATEGORIES.get(view, view), needs_data=True)


_UNDECLARED = Traits("other")
_DECLARED: dict[Callable[..., Any], Traits] = {}


def metric(
    *,
    category: str,
    low: float | int = -math.inf,
    high: float | int = math.inf,
    equal: float | int | None = None,
    needs_data: bool = False,
    per_pair: bool = False,
    on_request: bool = False,
) -> Callable[[Function], Function]:
    """Return a decorator that declares the traits of a metric.

    The values must be literals: command lines read them from the source, without importing it.

    Args:
        category: group of the metric, such as "geometry" or "subspace"; "other" without this decorator.
        low: lowest possible value.
        high: highest possible value.
        equal: value for two copies of a model; None if that depends on the model.
        needs_data: whether the metric needs calibration images and heads.
        per_pair: whether it takes passes over the data for each pair.
        on_request: whether it is measured only if named, or with the set `all`.

    Returns:
        A decorator that records the traits and returns the function unchanged.

    Examples:
        >>> import numpy as np
        >>> from mergeability import measure
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.metrics import metric
        >>> @metric(category="geometry", low=0)
        ... def longer_norm(profiles):
        ...     lengths = np.sqrt(np.diag(profiles.gram()))
        ...     return np.maximum(lengths[:, None], lengths)
        >>> models = tiny_task_vectors(cars=[3, 4], svhn=[1, 0])
        >>> measure(models, {"longer_norm": longer_norm})["longer_norm"].tolist()
        [5.0]
    """

    def declare(function: Function) -> Function:
        _DECLARED[function] = Traits(category, low, high, equal, needs_data, per_pair, on_request)
        return function

    return declare


def traits_of(function: Callable[..., Any]) -> Traits:
    """Return the traits that a metric declares, such as its range; a range that is not declared is infinite.

    Args:
        function: a metric, or a `functools.partial` of one, whose options are taken into account.

    Examples:
        >>> from mergeability.metrics.gram import cosine_similarity
        >>> from mergeability.metrics.traits import traits_of
        >>> found = traits_of(cosine_similarity)
        >>> found.category, found.low, found.high
        ('geometry', -1, 1)
    """
    if isinstance(function, partial):
        return _DECLARED.get(function.func, _UNDECLARED).with_options(function.keywords)
    return _DECLARED.get(function, _UNDECLARED)


def documented_range(function: Callable[..., Any]) -> tuple[float, float]:
    """Return the lowest and the highest possible value of a metric; infinite if not declared.

    Args:
        function: a metric.

    Examples:
        >>> from mergeability.metrics.traits import documented_range
        >>> from mergeability.metrics.rank import effective_rank
        >>> documented_range(effective_rank)
        (1.0, 2.0)
    """
    traits = traits_of(function)
    return float(traits.low), float(traits.high)
