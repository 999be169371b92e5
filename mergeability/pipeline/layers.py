"""Find the tensors in which two models conflict: compute the cosine of their task vectors in every tensor."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mergeability.profiles.profiles import VIEWS, Profiles

MOST_VALUES = 200_000
"""In the table, one per pair and tensor: of more, the file would be larger than all others together."""

COLUMNS = ["task_a", "task_b", "layer", "cosine"]


def layer_cosines(profiles: Profiles, pairs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Compute the cosine ⟨a, b⟩ / (‖a‖‖b‖) of each pair's task vectors in every tensor.

    The Gram matrices are those of the metrics. Without a metric that uses them, nothing is computed.

    Args:
        profiles: the models, after the metrics were measured.
        pairs: with `task_a` and `task_b`.

    Returns:
        One row per pair and tensor, tensors in the order of the network: `task_a`, `task_b`, `layer`, and `cosine` in
        [-1, 1], NaN where a model did not change the tensor; and a sentence if there are too many values.

    Examples:
        >>> import pandas as pd
        >>> from mergeability import Profiles
        >>> from mergeability.examples import tiny_task_vectors
        >>> from mergeability.pipeline.layers import layer_cosines
        >>> profiles = Profiles(tiny_task_vectors(cars=[3, 0], svhn=[-3, 3]))
        >>> _ = profiles.gram()
        >>> layer_cosines(profiles, pd.DataFrame({"task_a": ["cars"], "task_b": ["svhn"]}))[0].round(3)
          task_a task_b   layer  cosine
        0   cars   svhn  weight  -0.707
    """
    if not profiles.has(VIEWS["task_vector"]) or pairs.empty:
        return pd.DataFrame(columns=COLUMNS), []
    layers: Sequence[str] = profiles.task_vectors.names
    count = len(layers) * len(pairs)
    if count > MOST_VALUES:
        return pd.DataFrame(columns=COLUMNS), [
            f"Cosines by layer are left out: {len(layers)} layers of {len(pairs)} pairs are {count:,} values, more than"
            f" {MOST_VALUES:,}."
        ]
    grams = profiles.layer_grams()
    places = {task: place for place, task in enumerate(profiles.tasks)}
    a, b = (pairs[name].map(places).to_numpy(dtype=int) for name in ("task_a", "task_b"))
    lengths = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    products = lengths[:, a] * lengths[:, b]
    cosines = np.divide(grams[:, a, b], products, out=np.full(products.shape, np.nan), where=products > 0)
    return pd.DataFrame(
        {
            "task_a": np.repeat(pairs["task_a"].to_numpy(), len(layers)),
            "task_b": np.repeat(pairs["task_b"].to_numpy(), len(layers)),
            "layer": np.tile(np.array(layers, dtype=object), len(pairs)),
            # Rounding can put a cosine outside its range.
            "cosine": np.clip(cosines, -1, 1).T.ravel(),
        }
    ), []
