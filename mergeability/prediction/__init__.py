"""Step 10, the outcome of a merge predicted from how two models relate.

A predictor is a scikit-learn regressor on a table of pairs; `conf/predictor` lists them. Plain ones
(`sklearn.linear_model.LinearRegression` for `ols`, `sklearn.dummy.DummyRegressor` for `mean`) need no file
here.
"""

import lazy_loader

# The names are listed in `__init__.pyi`, for type checkers too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
