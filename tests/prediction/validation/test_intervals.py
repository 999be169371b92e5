"""Conformal intervals over tasks: by hand, and by loops."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut
from mergeability.prediction.validation.intervals import conformal_table, half_width

TASKS = "abcdef"
PAIRS = list(combinations(TASKS, 2))


def _predictions(protocol, seed=0, pairs=PAIRS):
    generator = np.random.default_rng(seed)
    measured = generator.normal(size=len(pairs))
    rows = [
        (fold.label, *pairs[row], measured[row], measured[row] + generator.normal())
        for fold in protocol.folds(pairs)
        for row in fold.validation
    ]
    columns = ["held_out", "task_a", "task_b", "measured", "predicted"]
    own = {"protocol": protocol.name, "target": "acc", "method": "ties", "predictor": "ridge"}
    return pd.DataFrame(rows, columns=columns).assign(**own)


def test_half_width_by_hand():
    nine = np.array([9.0, 1, 8, 2, 7, 3, 6, 4, 5])
    # Rank ⌈10 · level⌉: the ninth, the fifth, the sixth, the first.
    assert half_width(nine, 0.9) == (9.0, 0.9)
    assert half_width(nine, 0.5) == (5.0, 0.5)
    assert half_width(nine, 0.51) == (6.0, 0.51)
    assert half_width(nine, 0.85) == (9.0, 0.85)
    assert half_width(nine, 0.05) == (1.0, 0.05)
    # Rank 10 of nine: no more than 9/10 can be promised.
    assert half_width(nine, 0.95) == (9.0, 0.9)
    # Of nineteen residuals ⌈20 · 0.9⌉ = 18.
    assert half_width(np.arange(1.0, 20), 0.9) == (18.0, 0.9)
    assert half_width(np.array([3.0, 2, 1]), 0.9) == (3.0, 0.75)
    assert all(np.isnan(half_width(np.array([]))))


def test_the_level_that_a_half_width_has_holds_for_exchangeable_pairs():
    """Of T + 1 exchangeable scores the last is at most q with the level's probability."""
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(4000, 10))
    covered = np.mean([draw[-1] <= half_width(draw[:-1], 0.8)[0] for draw in draws])
    assert covered == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("protocol", [LeaveOneTaskOut(), LeaveTwoTasksOut()], ids=["loto", "l2to"])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_that_of_a_plain_loop(protocol, level):
    pairs = [pair for pair in PAIRS if pair != ("b", "d")]
    predictions = _predictions(protocol, 5, pairs)
    inside = []
    for task in TASKS:
        own, others = [], []
        for row in predictions.itertuples():
            off = abs(row.measured - row.predicted)
            held_out = [row.held_out] if protocol.name == "loto" else [row.task_a, row.task_b]
            if task in held_out:
                own.append(off)
            if task not in (row.task_a, row.task_b):
                others.append(off)
        others.sort()
        rank = min(int(np.ceil((len(others) + 1) * level)), len(others))
        inside.append(np.mean([off <= others[rank - 1] for off in own]))
    row = conformal_table(predictions, level).iloc[0]
    assert row["tasks"] == 6
    assert row["coverage"] == pytest.approx(np.mean(inside))
    assert row["tasks_covered"] == pytest.approx(np.mean([share >= level for share in inside]))
    ordered = sorted((predictions["measured"] - predictions["predicted"]).abs())
    rank = int(np.ceil((len(ordered) + 1) * level))
    assert row["half_width"] == pytest.approx(ordered[min(rank, len(ordered)) - 1])
    assert row["level"] == pytest.approx(level if rank <= len(ordered) else len(ordered) / (len(ordered) + 1))
    measured = dict(zip(zip(predictions["task_a"], predictions["task_b"]), predictions["measured"]))
    assert row["spread"] == pytest.approx(np.std(list(measured.values())))


def test_without_a_pair_that_lacks_the_task_the_coverage_is_unknown():
    predictions = _predictions(LeaveTwoTasksOut())
    star = predictions[predictions["task_a"] == "a"]
    row = conformal_table(star).iloc[0]
    assert row["half_width"] > 0
    assert np.isnan(row["coverage"])
    assert np.isnan(row["tasks_covered"])


def test_the_spread_counts_each_pair_once_however_often_it_was_validated():
    predictions = _predictions(DisjointHalves(repeats=4))
    measured = {(row.task_a, row.task_b): row.measured for row in predictions.itertuples()}
    spread = conformal_table(predictions).iloc[0]["spread"]
    assert spread == pytest.approx(np.std(list(measured.values())))
    assert spread != pytest.approx(predictions["measured"].std(ddof=0), rel=1e-3)


def test_each_predictor_and_outcome_has_its_own_row():
    first, second = _predictions(LeaveOneTaskOut(), 0), _predictions(LeaveTwoTasksOut(), 1)
    both = pd.concat([first, first.assign(predictor="ols"), second], ignore_index=True)
    found = conformal_table(both)
    assert found[["protocol", "predictor"]].to_numpy().tolist() == [
        ["loto", "ridge"],
        ["loto", "ols"],
        ["l2to", "ridge"],
    ]
    assert found.iloc[2]["half_width"] == conformal_table(second).iloc[0]["half_width"]
