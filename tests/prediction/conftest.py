"""A small pair table whose outcomes follow known metrics."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def table() -> pd.DataFrame:
    """Six tasks, 15 pairs, three metrics; `ties` is 0.8 + 0.1 first - 0.05 second, `average` pure noise."""
    generator = np.random.default_rng(0)
    pairs = list(combinations("abcdef", 2))
    frame = pd.DataFrame(pairs, columns=["task_a", "task_b"])
    for metric in ("first", "second", "third"):
        frame[metric] = generator.normal(size=len(pairs))
    frame["norm_acc_ties"] = 0.8 + 0.1 * frame["first"] - 0.05 * frame["second"]
    frame["norm_acc_average"] = generator.uniform(size=len(pairs))
    frame["norm_acc_ties_a"] = 1.0
    return frame
