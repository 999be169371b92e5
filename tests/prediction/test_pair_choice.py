"""The pairs that a budget has evaluated: all models alike, and the ones whose metrics tell most about the rest."""

import itertools

import numpy as np
import pandas as pd
import pytest

from mergeability.prediction.pair_choice import choose_pairs


def table(tasks=12, metrics=3, seed=0):
    generator = np.random.default_rng(seed)
    pairs = list(itertools.combinations([f"t{i:02}" for i in range(tasks)], 2))
    columns = {f"m{i}": generator.normal(size=len(pairs)) for i in range(metrics)}
    return pd.DataFrame({"task_a": [a for a, _ in pairs], "task_b": [b for _, b in pairs], **columns})


def degrees(frame, rows):
    counts = frame.iloc[rows][["task_a", "task_b"]].to_numpy().ravel().tolist()
    return [counts.count(task) for task in sorted({*frame["task_a"], *frame["task_b"]})]


@pytest.mark.parametrize("count", [6, 7, 18, 30, 65])
@pytest.mark.parametrize("tasks", [12, 13])
def test_every_model_is_in_about_equally_many_pairs(tasks, count):
    frame = table(tasks)
    rows = choose_pairs(frame, ["m0", "m1", "m2"], count)
    assert len(set(rows.tolist())) == count
    found = degrees(frame, rows)
    assert max(found) - min(found) <= 2
    assert min(found) >= min(1, 2 * count // tasks)


def test_each_step_takes_the_partner_that_lowers_the_mean_variance_most():
    frame = table(8)
    values = frame[["m0", "m1", "m2"]].to_numpy()
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    rows = choose_pairs(frame, ["m0", "m1", "m2"], 10, seed=3).tolist()

    def mean_variance(chosen):
        information = values[chosen].T @ values[chosen] + 10 * np.eye(3)
        return np.mean([x @ np.linalg.solve(information, x) for x in values])

    ends = frame[["task_a", "task_b"]].to_numpy().tolist()
    for step, row in enumerate(rows):
        before = rows[:step]
        count = {task: sum(task in ends[one] for one in before) for pair in ends for task in pair}
        # The step is the best one from the side of at least one of the two models, the one in the fewest pairs.
        best = False
        for first in ends[row]:
            open_rows = [one for one, pair in enumerate(ends) if first in pair and one not in before]
            partner = {one: next(task for task in ends[one] if task != first) for one in open_rows}
            fewest = min(count[partner[one]] for one in open_rows)
            rivals = [one for one in open_rows if count[partner[one]] == fewest]
            variances = {one: mean_variance([*before, one]) for one in rivals}
            best |= (
                count[first] == min(count.values())
                and variances.get(row, np.inf) <= min(variances.values()) + 1e-9
            )
        assert best


def test_it_depends_on_the_seed_and_the_content_alone():
    frame, metrics = table(10), ["m0", "m1", "m2"]
    rows = choose_pairs(frame, metrics, 15, seed=1)
    mixed = frame.sample(frac=1, random_state=0)
    turned = mixed.rename(columns={"task_a": "task_b", "task_b": "task_a"}).assign(
        acc_ties=np.arange(len(frame))
    )
    again = mixed.index[choose_pairs(turned, metrics, 15, seed=1)]
    assert set(again) == set(rows.tolist())
    assert set(choose_pairs(frame, metrics, 15, seed=2).tolist()) != set(rows.tolist())
    assert choose_pairs(frame, metrics, 15, seed=1).tolist() == rows.tolist()


def test_metrics_that_are_undefined_constant_or_missing_do_no_harm():
    frame = table(9).assign(constant=1.0, empty=np.nan)
    frame.loc[::4, "m0"] = np.nan
    for metrics in (["m0", "constant", "empty"], []):
        assert max(degrees(frame, choose_pairs(frame, metrics, 9))) <= 3
    assert choose_pairs(frame, ["m0"], 99).tolist() == list(range(36))


def test_pairs_that_are_not_in_the_table_are_not_chosen():
    star = table(10).query("task_a == 't00'").reset_index(drop=True)
    rows = choose_pairs(star, ["m0"], 5)
    assert sorted(degrees(star, rows)) == [0] * 4 + [1] * 5 + [5]
