"""How much a predictor without coefficients relies on each metric."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def permutation_importances(
    predict: Callable[[np.ndarray], np.ndarray],
    X: Float[np.ndarray, "n m"],
    y: Float[np.ndarray, " n"],
    seed: int,
    repeats: int = 5,
) -> Float[np.ndarray, " m"]:
    """Average over shuffles of column j: (Σ(y - f(X shuffled in j))² - Σ(y - f(X))²) / Σ(y - ȳ)².

    That is the fall of R² on these rows, at least 0 but for chance; 0 everywhere where y is constant. All
    shuffles go through one call of `predict`. Breiman, 2001.
    """
    generator = np.random.default_rng(seed)
    shuffled = np.tile(X, (X.shape[1], repeats, 1, 1))
    for j, copies in enumerate(shuffled):
        for copy in copies:
            copy[:, j] = generator.permutation(X[:, j])
    spread = float(((y - y.mean()) ** 2).sum())
    if spread == 0.0:
        return np.zeros(X.shape[1])
    predicted = predict(np.concatenate([X, shuffled.reshape(-1, X.shape[1])])).reshape(-1, len(y))
    errors = ((predicted - y) ** 2).sum(axis=1)
    return (errors[1:].reshape(-1, repeats).mean(axis=1) - errors[0]) / spread
