"""Create a small pair table for the examples in docstrings."""

from itertools import combinations

import numpy as np
import pandas as pd

_EFFECTS = {"cars": 0.00, "dtd": 0.02, "gtsrb": 0.05, "mnist": 0.03, "sun397": 0.04, "svhn": 0.01}


def example_pairs() -> pd.DataFrame:
    """Create a table of the 15 pairs of six tasks, with two metrics and the outcomes of two merge methods.

    The numbers are computed from a fixed formula, not measured: each outcome is a constant plus the effects of the two
    tasks, a multiple of `cosine` and a small remainder. Examples therefore need no model and no image.

    Returns:
        One row per pair, with `task_a`, `task_b`, the metrics `cosine` and `distance` in [0, 1], and the normalised
        accuracies `norm_acc_task_arithmetic` and `norm_acc_ties`.

    Examples:
        >>> from mergeability.prediction.examples import example_pairs
        >>> pairs = example_pairs()
        >>> pairs.shape
        (15, 6)
        >>> pairs.columns[:4].tolist()
        ['task_a', 'task_b', 'cosine', 'distance']
        >>> pairs["norm_acc_ties"].head(3).tolist()
        [0.84, 0.886, 0.853]
    """
    pairs = list(combinations(_EFFECTS, 2))
    index = np.arange(len(pairs))
    # Multiples of irrational numbers modulo 1 are evenly spread but look random.
    cosine, distance, rest = (np.round(index * step % 1, 2) for step in (0.618, 0.414, 0.732))
    effects = np.array([_EFFECTS[a] + _EFFECTS[b] for a, b in pairs])
    return pd.DataFrame(
        {
            "task_a": [a for a, _ in pairs],
            "task_b": [b for _, b in pairs],
            "cosine": cosine,
            "distance": distance,
            "norm_acc_task_arithmetic": np.round(0.78 + effects + 0.10 * cosine + 0.02 * rest, 3),
            "norm_acc_ties": np.round(0.82 + effects + 0.05 * cosine - 0.02 * rest, 3),
        }
    )
