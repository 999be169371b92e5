"""Define the interface of predictors, which are scikit-learn regressors with optional attributes."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol, runtime_checkable

from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression
from sklearn.utils.validation import has_fit_parameter

from mergeability.prediction.predictors.arrays import Problem


@runtime_checkable
class Predictor(Protocol):
    """Define the interface of predictors; every scikit-learn regressor has this interface.

    Optional attributes, which `traits` reads and scikit-learn's own regressors need not declare:

    - `inputs`, the columns passed to `fit`: "metrics" (the default, scaled by their ranges), "raw" (the metrics in
      their own units), "tasks" (incidence columns) or "both". With "both" the last columns are those of the tasks, and
      `fit` takes their number as `tasks`.
    - `columns(target, method)`, alternatives of columns of the table used instead of the metrics.
    - `closed_form`, whether the fit is a closed-form solution rather than a search, so that hundreds of folds are
      cheap.
    - a `fit` argument `folds`, for which the inner folds of the training rows are passed.
    - `fit_many(problems)`, which fits all folds at once (`BatchPredictor`); with an argument `seeds`, each problem
      from a random start.
    - `coef_` after the fit, one number per column.

    Examples:
        >>> from sklearn.linear_model import Ridge
        >>> isinstance(Ridge(), Predictor)
        True
    """

    def fit(self, X: Any, y: Any, /) -> Any:
        """Fit the predictor to the training rows."""
        ...

    def predict(self, X: Any, /) -> Any:
        """Return one prediction per row."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's options."""
        ...


@runtime_checkable
class BatchPredictor(Predictor, Protocol):
    """Define the interface of predictors that compute many fits at once, because this is faster than a loop."""

    def fit_many(self, problems: Sequence[Problem], /, **options: Any) -> Sequence[Predictor]:
        """Fit one copy of the predictor to the data of each problem; `options` may contain `tasks` and `seeds`."""
        ...


@dataclass(frozen=True)
class Traits:
    """Hold the properties that a predictor may declare.

    Attributes:
        inputs: the columns that it receives: "metrics", "raw", "tasks" or "both".
        closed_form: whether the fit is a closed-form solution rather than a search.
        nested: whether `fit` takes inner folds.
        random_start: whether it fits many problems at once, each from a random start.
    """

    inputs: str
    closed_form: bool
    nested: bool
    random_start: bool


def traits(predictor: Predictor) -> Traits:
    """Return the properties that a predictor declares, with defaults for the others.

    Args:
        predictor: the regressor.

    Returns:
        The properties of the predictor.

    Examples:
        >>> traits(LinearRegression())
        Traits(inputs='metrics', closed_form=True, nested=False, random_start=False)
    """
    return Traits(
        inputs=getattr(predictor, "inputs", "metrics"),
        closed_form=getattr(
            predictor, "closed_form", isinstance(predictor, LinearRegression | DummyRegressor)
        ),
        nested=has_fit_parameter(predictor, "folds"),
        random_start=isinstance(predictor, BatchPredictor)
        and "seeds" in signature(predictor.fit_many).parameters,
    )
