"""Step 9: can the outcome of a merge be foreseen from how two models relate?

A predictor is a scikit-learn regressor on a table of pairs; `conf/predictor` lists them. Plain ones
(`sklearn.linear_model.LinearRegression` for `ols`, `sklearn.dummy.DummyRegressor` for `mean`) need no file
here.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Additive": "additive",
    "BackwardElimination": "backward_elimination",
    "DisjointHalves": "protocols",
    "Dyadic": "dyadic",
    "ElasticNet": "elastic_net",
    "ForwardSelection": "forward_selection",
    "Lasso": "lasso",
    "LeaveOneTaskOut": "protocols",
    "LeaveTwoTasksOut": "protocols",
    "MLP": "mlp",
    "PairTable": "table",
    "Pearson": "pearson",
    "PredictionResult": "evaluate",
    "Ridge": "ridge",
    "Scorer": "scorer",
    "StudySettings": "study",
    "Trees": "trees",
    "evaluate_predictors": "evaluate",
    "fingerprints": "fingerprints",
    "method_consistency": "consistency",
    "study_predictions": "study",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
