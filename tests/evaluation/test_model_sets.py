import itertools
import math

import pytest

from mergeability.errors import UserError
from mergeability.evaluation.model_sets import MergeSets

TASKS = ("delta", "alpha", "charlie", "bravo", "echo")


def test_all_pairs_come_in_the_order_of_the_tasks():
    assert MergeSets().choose(TASKS) == list(itertools.combinations(TASKS, 2))


def test_named_pairs_come_once_in_the_order_of_the_tasks():
    chosen = MergeSets(pairs=[["alpha", "delta"], ["delta", "alpha"], ["echo", "bravo"]]).choose(TASKS)
    assert chosen == [("delta", "alpha"), ("bravo", "echo")]


def test_names_that_look_like_numbers_are_names():
    assert MergeSets(pairs=[[1, 2]]).choose(("2", "1")) == [("2", "1")]


def test_random_sets_are_distinct_and_depend_on_seed_size_and_names_alone():
    wide = [f"task{number}" for number in range(12)]
    chosen = MergeSets(arity=5, sets=100, seed=3).choose(wide)
    assert len(chosen) == len(set(chosen)) == 100
    assert all(len(set(one)) == 5 and list(one) == sorted(one, key=wide.index) for one in chosen)
    turned = MergeSets(arity=5, sets=100, seed=3).choose(wide[::-1])
    assert {frozenset(one) for one in turned} == {frozenset(one) for one in chosen}
    assert MergeSets(arity=5, sets=100, seed=4).choose(wide) != chosen
    # More sets are an extension: what was evaluated stays of use.
    assert MergeSets(arity=5, sets=150, seed=3).choose(wide)[:100] == chosen
    counts = [sum(task in one for one in chosen) for task in wide]
    # Each task is in 5/12 of the sets, give or take four standard deviations.
    assert all(abs(count - 100 * 5 / 12) < 4 * math.sqrt(100 * 5 / 12 * 7 / 12) for count in counts)


def test_the_whole_suite_and_several_sizes():
    assert MergeSets(arity="all").choose(TASKS) == [TASKS]
    chosen = MergeSets(arity=[2, 4, "all"], sets=3).choose(TASKS)
    assert [len(one) for one in chosen] == [2, 2, 2, 4, 4, 4, 5]


def test_as_many_sets_as_there_are_is_all_of_them():
    assert MergeSets(arity=3, sets=99).choose(TASKS) == list(itertools.combinations(TASKS, 3))


def test_very_many_sets_must_be_asked_for():
    wide = [f"task{number}" for number in range(20)]
    with pytest.raises(
        UserError,
        match=r"20 models form 15504 sets of 5\. Choose how many of these sets to merge, such as sets=200",
    ):
        MergeSets(arity=5).choose(wide)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"arity": 1}, "number of at least 2, or 'all', got 1"),
        ({"arity": "many"}, "got 'many'"),
        ({"arity": 2.5}, "got 2.5"),
        ({"arity": True}, "got True"),
        ({"sets": 0}, "positive whole number, got 0"),
        ({"pairs": [["a", "a"]]}, "pairs of different tasks"),
        ({"pairs": [["a", "b", "c"]]}, "pairs of different tasks"),
        ({"pairs": "a,b"}, "pairs of different tasks"),
        ({"pairs": []}, "pairs of different tasks"),
        ({"pairs": [["a", "b"]], "arity": 3}, "either pairs=…, or arity=…"),
        ({"pairs": [["a", "b"]], "sets": 3}, "either pairs=…, or arity=…"),
    ],
)
def test_what_is_no_choice_is_refused(options, parts):
    with pytest.raises(UserError, match=parts):
        MergeSets(**options)


def test_unknown_tasks_and_sets_larger_than_the_suite_are_refused():
    with pytest.raises(UserError, match="pairs=… contains foxtrot, but the suite contains only delta"):
        MergeSets(pairs=[["alpha", "foxtrot"]]).choose(TASKS)
    with pytest.raises(UserError, match="arity=6 exceeds the 5 models"):
        MergeSets(arity=6).choose(TASKS)
