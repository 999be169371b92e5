"""Who is trained on and who is validated: by hand, by counting, and through scikit-learn."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_predict, cross_val_score

from mergeability.errors import UserError
from mergeability.prediction import DisjointHalves, LeaveOneTaskOut, LeaveTwoTasksOut
from mergeability.prediction.pair_table import incidence, task_order
from mergeability.prediction.validation.protocols import AcrossGroups, SplitProtocol, named_protocols

FOUR = list(combinations("abcd", 2))  # ab ac ad bc bd cd
TWENTY = list(combinations([f"t{i:02}" for i in range(20)], 2))
EVERY = [LeaveOneTaskOut(), LeaveTwoTasksOut(), DisjointHalves(repeats=5, seed=1)]


def _folds(protocol, pairs):
    return [
        (fold.held_out, fold.training.tolist(), fold.validation.tolist()) for fold in protocol.folds(pairs)
    ]


def test_leave_one_task_out_of_four_by_hand():
    assert _folds(LeaveOneTaskOut(), FOUR) == [
        (("a",), [3, 4, 5], [0, 1, 2]),
        (("b",), [1, 2, 5], [0, 3, 4]),
        (("c",), [0, 2, 4], [1, 3, 5]),
        (("d",), [0, 1, 3], [2, 4, 5]),
    ]


def test_leave_two_tasks_out_of_four_by_hand():
    assert _folds(LeaveTwoTasksOut(), FOUR) == [
        (("a", "b"), [5], [0]),
        (("a", "c"), [4], [1]),
        (("a", "d"), [3], [2]),
        (("b", "c"), [2], [3]),
        (("b", "d"), [1], [4]),
        (("c", "d"), [0], [5]),
    ]


def test_pairs_that_are_missing_or_turned_round_by_hand():
    # Five tasks, without a-b, c-e and d-e; e comes first in its only two pairs.
    pairs = [("a", "c"), ("d", "a"), ("b", "c"), ("b", "d"), ("c", "d"), ("e", "a"), ("e", "b")]
    assert _folds(LeaveOneTaskOut(), pairs) == [
        (("a",), [2, 3, 4, 6], [0, 1, 5]),
        (("d",), [0, 2, 5, 6], [1, 3, 4]),
        (("b",), [0, 1, 4, 5], [2, 3, 6]),
        (("c",), [1, 3, 5, 6], [0, 2, 4]),
        (("e",), [0, 1, 2, 3, 4], [5, 6]),
    ]
    two = {fold.label: fold.training.tolist() for fold in LeaveTwoTasksOut().folds(pairs)}
    assert two == {
        "a+c": [3, 6],
        "d+a": [2, 6],
        "b+c": [1, 5],
        "b+d": [0, 5],
        "c+d": [5, 6],
        "e+a": [2, 3, 4],
        "e+b": [0, 1, 4],
    }


def test_a_fold_without_training_rows_is_left_out():
    star = [("a", "b"), ("a", "c"), ("a", "d")]
    assert [fold.label for fold in LeaveOneTaskOut().folds(star)] == ["b", "c", "d"]
    assert list(LeaveTwoTasksOut().folds(star)) == []
    assert LeaveTwoTasksOut().get_n_splits(groups=star) == 0
    assert list(DisjointHalves().folds(star)) == []


def test_the_counts_for_twenty_tasks_are_the_known_ones():
    one, two, halves = (list(protocol.folds(TWENTY)) for protocol in EVERY)
    assert {(len(f.training), len(f.validation)) for f in one} == {(171, 19)}
    assert {(len(f.training), len(f.validation)) for f in two} == {(153, 1)}
    assert {(len(f.training), len(f.validation)) for f in halves} == {(45, 45)}
    assert (len(one), len(two), len(halves)) == (20, 190, 5)
    assert [f.validation.item() for f in two] == list(range(190))
    assert {len(f.held_out) for f in halves} == {10}


@pytest.mark.parametrize("protocol", EVERY, ids=lambda one: one.name)
def test_no_training_pair_has_a_task_that_is_held_out_and_every_validated_pair_has(protocol):
    generator = np.random.default_rng(0)
    pairs = [TWENTY[row] for row in generator.permutation(190)[:150]]
    for fold in protocol.folds(pairs):
        held_out = set(fold.held_out)
        assert all(not held_out & set(pairs[row]) for row in fold.training)
        shared = {len(held_out & set(pairs[row])) for row in fold.validation}
        assert shared <= ({1} if protocol.name == "loto" else {2})
    assert isinstance(protocol, SplitProtocol)


def test_halves_are_those_of_their_seed_and_differ_between_repeats():
    first, again, other = (_folds(DisjointHalves(seed=seed), TWENTY) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({held_out for held_out, _, _ in first}) == len(first) == 20
    assert _folds(DisjointHalves(repeats=3, seed=3), TWENTY) == first[:3]


def test_an_odd_number_of_tasks_leaves_the_larger_half_to_validation():
    pairs = list(combinations("abcde", 2))
    found = _folds(DisjointHalves(repeats=4), pairs)
    assert {(len(training), len(validation)) for _, training, validation in found} == {(1, 3)}


@pytest.mark.parametrize("protocol", EVERY[:2], ids=lambda one: one.name)
def test_scikit_learn_cross_validates_with_the_pairs_as_groups(protocol):
    generator = np.random.default_rng(2)
    pairs = list(combinations("abcdefg", 2))
    X, y = generator.normal(size=(21, 2)), generator.normal(size=21)
    scores = cross_val_score(
        LinearRegression(), X, y, groups=pairs, cv=protocol, scoring="neg_mean_squared_error"
    )
    expected = []
    held_outs = ["abcdefg"[i] for i in range(7)] if protocol.name == "loto" else pairs
    for held_out in held_outs:
        if protocol.name == "loto":
            out = [i for i, pair in enumerate(pairs) if held_out in pair]
        else:
            out = [pairs.index(held_out)]
        kept = [i for i, pair in enumerate(pairs) if not set(held_out) & set(pair)]
        design = np.column_stack([np.ones(21), X])
        weights = np.linalg.lstsq(design[kept], y[kept], rcond=None)[0]
        expected.append(-np.mean((design[out] @ weights - y[out]) ** 2))
    np.testing.assert_allclose(scores, expected)
    assert protocol.get_n_splits(groups=pairs) == len(held_outs)


def test_scikit_learn_predicts_each_pair_once_by_leaving_two_tasks_out():
    pairs = list(combinations("abcdef", 2))
    X, y = np.arange(15.0)[:, None], 3.0 - 2.0 * np.arange(15.0)
    predicted = cross_val_predict(LinearRegression(), X, y, groups=pairs, cv=LeaveTwoTasksOut())
    np.testing.assert_allclose(predicted, y)


@pytest.mark.parametrize("protocol", EVERY, ids=lambda one: one.name)
def test_without_pairs_or_with_something_else_the_reason_is_said(protocol):
    with pytest.raises(UserError, match="Pass groups="):
        next(iter(protocol.split(np.zeros((6, 1)))))
    with pytest.raises(UserError, match=r"array of shape \(n, 2\) with task names, got shape \(6,\)"):
        list(protocol.folds(["a", "b", "c", "d", "e", "f"]))


def test_protocols_are_found_by_name_once_each():
    names = ["l2to", "halves", "l2to", "loto"]
    assert [one.name for one in named_protocols(names)] == ["l2to", "halves", "loto"]
    with pytest.raises(UserError, match="among loto, l2to, halves, got loocv"):
        named_protocols(["loto", "loocv"])
    with pytest.raises(UserError, match="got none"):
        named_protocols([])


def test_incidence_and_order_by_hand():
    pairs = [("b", "a"), ("b", "c"), ("a", "d")]
    assert task_order(pairs) == ("b", "a", "c", "d")
    np.testing.assert_array_equal(incidence(pairs, ("a", "b", "c")), [[1, 1, 0], [0, 1, 1], [1, 0, 0]])


def test_across_groups_is_one_fold_without_the_pairs_across():
    pairs = list(combinations("abcxyz", 2))
    (fold,) = AcrossGroups("abc", "xyz").folds(pairs)
    assert [pairs[row] for row in fold.training] == list(combinations("abc", 2))
    assert [pairs[row] for row in fold.validation] == list(combinations("xyz", 2))
    assert fold.held_out == ("x", "y", "z")


def test_across_groups_chooses_among_the_fitted_by_leaving_two_tasks_out():
    assert _folds(AcrossGroups("abcd", "xyz"), FOUR) == _folds(LeaveTwoTasksOut(), FOUR)
    assert _folds(AcrossGroups("abc", "xyz"), FOUR) == [], "neither a pair to validate nor only pairs to fit"


def test_a_task_of_both_groups_is_refused():
    with pytest.raises(UserError, match="c is in both groups"):
        AcrossGroups("abc", "cxy")
