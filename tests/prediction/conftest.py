"""A small pair table whose outcomes follow known metrics, and the published one."""

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PUBLISHED = Path(
    os.environ.get(
        "MERGEABILITY_PUBLISHED_TABLE",
        Path(__file__).parents[2].parent / "shared" / "published" / "vit_b16_adamw.csv",
    )
)


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


@pytest.fixture(scope="session")
def published() -> pd.DataFrame:
    """The published pair table: 20 tasks, 28 metrics in columns 2 to 30, outcomes of six methods."""
    if not PUBLISHED.is_file():
        pytest.skip(
            f"the published pair table is not at {PUBLISHED}; set MERGEABILITY_PUBLISHED_TABLE to its path"
        )
    return pd.read_csv(PUBLISHED)
