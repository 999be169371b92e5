"""The interface of predictors: any scikit-learn regressor, and the optional traits that save time or add inputs."""

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
    """A scikit-learn regressor.

    Optional attributes, none of which scikit-learn's own regressors have to declare; `traits` reads them:

    - `inputs`, the columns that `fit` is given: "metrics" (the default, scaled by their ranges), "raw" (the metrics in
      their own units), "tasks" (incidence columns) or "both".
    - `columns(target, method)`, alternatives of columns of the table that it looks at instead of the metrics.
      With "both" the last columns are those of the tasks, and `fit` takes their number as `tasks`.
    - `closed_form`, whether the fit is solved rather than searched for, so that hundreds of folds cost little.
    - a `fit` argument `folds`, for which the inner folds of the training rows are passed.
    - `fit_many(problems)`, which fits all folds at once (`BatchPredictor`); with an argument `seeds`, each problem
      from a random start.
    - `coef_` after the fit, one number per column.

    >>> from sklearn.linear_model import Ridge
    >>> isinstance(Ridge(), Predictor)
    True
    """

    def fit(self, X: Any, y: Any, /) -> Any:
        """Fit the training rows."""
        ...

    def predict(self, X: Any, /) -> Any:
        """Return one number per row."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the options that it was made with."""
        ...


@runtime_checkable
class BatchPredictor(Predictor, Protocol):
    """A predictor that fits many problems at once, which takes a fraction of the time of separate fits."""

    def fit_many(self, problems: Sequence[Problem], /, **options: Any) -> Sequence[Predictor]:
        """Fit a copy of the predictor to each problem; options are `tasks` and `seeds`, where it takes them."""
        ...


@dataclass(frozen=True)
class Traits:
    """Optional abilities of a predictor.

    Attributes:
        inputs: the columns that it is given: "metrics", "raw", "tasks" or "both".
        closed_form: whether it is solved rather than searched for.
        nested: whether `fit` takes inner folds.
        random_start: whether it fits many problems at once, each from a random start.
    """

    inputs: str
    closed_form: bool
    nested: bool
    random_start: bool


def traits(predictor: Predictor) -> Traits:
    """Return the optional traits of a predictor.

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
