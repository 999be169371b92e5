"""Conformal intervals over tasks: by hand, and by loops."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut
from mergeability.prediction.validation.intervals import conformal_table, half_width, task_scores

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
    # Of nineteen tasks ⌈20 · 0.9⌉ = 18.
    assert half_width(np.arange(1.0, 20), 0.9) == (18.0, 0.9)
    assert half_width(np.array([3.0, 2, 1]), 0.9) == (3.0, 0.75)
    assert all(np.isnan(half_width(np.array([]))))


def test_the_level_that_a_half_width_has_holds_for_exchangeable_tasks():
    """Of T + 1 exchangeable scores the last is at most q with the level's probability."""
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(4000, 10))
    covered = np.mean([draw[-1] <= half_width(draw[:-1], 0.8)[0] for draw in draws])
    assert covered == pytest.approx(0.8, abs=0.02)


def test_a_tasks_score_is_the_quantile_of_its_own_residuals_with_one_task_left_out():
    predictions = _predictions(LeaveOneTaskOut())
    expected = []
    for task in TASKS:
        own = predictions[predictions["held_out"] == task]
        off = sorted(abs(own["measured"] - own["predicted"]))
        assert len(off) == 5
        expected.append(off[2])  # ⌈0.6 · 5⌉ = 3
    np.testing.assert_allclose(task_scores(predictions, 0.6), expected)
    # ⌈0.9 · 5⌉ = 5: the largest.
    largest = [
        (g["measured"] - g["predicted"]).abs().max() for _, g in predictions.groupby("held_out", sort=False)
    ]
    np.testing.assert_allclose(task_scores(predictions), largest)


def test_a_tasks_score_is_that_of_all_its_pairs_with_two_tasks_left_out():
    predictions = _predictions(LeaveTwoTasksOut())
    assert len(predictions) == 15
    expected = []
    for task in TASKS:
        own = predictions[(predictions["task_a"] == task) | (predictions["task_b"] == task)]
        expected.append(sorted(abs(own["measured"] - own["predicted"]))[1])  # ⌈0.4 · 5⌉ = 2
    np.testing.assert_allclose(task_scores(predictions, 0.4), expected)


@pytest.mark.parametrize("protocol", [LeaveOneTaskOut(), LeaveTwoTasksOut()], ids=["loto", "l2to"])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_that_of_a_plain_loop(protocol, level):
    pairs = [pair for pair in PAIRS if pair != ("b", "d")]
    predictions = _predictions(protocol, 5, pairs)
    residuals = {}
    for row in predictions.itertuples():
        tasks = [row.held_out] if protocol.name == "loto" else [row.task_a, row.task_b]
        for task in tasks:
            residuals.setdefault(task, []).append(abs(row.measured - row.predicted))
    scores = {task: sorted(off)[int(np.ceil(0.9 * len(off))) - 1] for task, off in residuals.items()}
    inside = []
    for task, off in residuals.items():
        others = sorted(score for other, score in scores.items() if other != task)
        rank = min(int(np.ceil(6 * level)), 5)
        inside.append(np.mean([one <= others[rank - 1] for one in off]))
    row = conformal_table(predictions, level).iloc[0]
    assert row["tasks"] == 6
    assert row["coverage"] == pytest.approx(np.mean(inside))
    assert row["tasks_covered"] == pytest.approx(np.mean([share >= 0.9 for share in inside]))
    ordered = sorted(scores.values())
    rank = int(np.ceil(7 * level))
    assert row["half_width"] == pytest.approx(ordered[min(rank, 6) - 1])
    assert row["level"] == pytest.approx(level if rank <= 6 else 6 / 7)
    measured = dict(zip(zip(predictions["task_a"], predictions["task_b"]), predictions["measured"]))
    assert row["spread"] == pytest.approx(np.std(list(measured.values())))


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
