import numpy as np
import pytest
import torch

from mergeability.errors import UserError
from mergeability.merging import Breadcrumbs, TaskArithmetic


def merged(make_task_vectors, rows, **options):
    """Merge models of one vector each, from a base of a power of two, so that no delta is rounded."""
    deltas = {f"task{number}": {"w": torch.tensor(row)} for number, row in enumerate(rows)}
    base = {"w": torch.full((len(rows[0]),), 8.0)}
    return Breadcrumbs(**options)(make_task_vectors(base, deltas))["w"].tolist()


def test_both_ends_are_dropped_and_the_rest_added_up_by_hand(make_task_vectors):
    # D = 5: ⌊0.2·5⌋ = 1 of the largest and ⌊0.5·5⌋ = 2 of the smallest go; two of each model stay.
    rows = [[4.0, -3.0, 2.0, 1.0, -0.5], [0.5, 1.5, -2.0, -4.0, 3.0]]
    found = merged(make_task_vectors, rows, largest=0.2, smallest=0.5)
    assert found == [0.0, -3.0, 2.0 - 2.0, 0.0, 3.0]


def test_shares_are_counts_rounded_down(make_task_vectors):
    rows = [[4.0, -3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    # ⌊0.24·4⌋ = 0, ⌊0.26·4⌋ = 1.
    assert merged(make_task_vectors, rows, largest=0.24, smallest=0.26) == [4.0, -3.0, 2.0, 0.0]
    # With the defaults ⌊0.85·4⌋ = 3 of the smallest go, and none of the largest.
    assert merged(make_task_vectors, rows) == [4.0, 0.0, 0.0, 0.0]


def test_of_equal_magnitudes_all_are_kept_if_one_is(make_task_vectors):
    other = [0.0] * 6
    # ⌊0.5·6⌋ = 3 smallest would be 1, 1 and one of the 2's: all three stay.
    rows = [[2.0, 1.0, -2.0, 1.0, 2.0, 4.0], other]
    assert merged(make_task_vectors, rows, largest=0, smallest=0.5) == [2.0, 0.0, -2.0, 0.0, 2.0, 4.0]
    # ⌊0.2·6⌋ = 1 largest would be one of two 4's: both stay.
    rows = [[4.0, -4.0, 2.0, 1.0, 0.5, 0.25], other]
    assert merged(make_task_vectors, rows, largest=0.2, smallest=0.5) == [4.0, -4.0, 2.0, 0.0, 0.0, 0.0]
    # All alike: there are neither large nor small ones.
    assert merged(make_task_vectors, [[1.0, -1.0, 1.0], [0.0] * 3]) == [1.0, -1.0, 1.0]


def test_it_follows_its_definition_on_every_tensor(make_task_vectors, random_tensors):
    shapes = {"matrix": (40, 30), "kernel": (5, 3, 4, 4), "vector": (250,), "number": ()}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("abc", start=1)}
    vectors = make_task_vectors(random_tensors(0, 1.0, shapes), deltas)
    found = Breadcrumbs()(vectors)
    for name, stack in vectors.items():
        expected = np.zeros(stack[0].shape)
        for tau in stack.double().numpy():
            size = tau.size
            order = np.argsort(np.abs(tau), axis=None)
            kept = order[int(0.85 * size) : size - int(0.01 * size)]
            mask = np.zeros(size, bool)
            mask[kept] = True
            expected += np.where(mask.reshape(tau.shape), tau, 0)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_nothing_dropped_is_task_arithmetic(three_models):
    found, plain = Breadcrumbs(largest=0, smallest=0)(three_models), TaskArithmetic()(three_models)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


def test_a_tensor_without_elements_stays_without(make_task_vectors):
    base = {"empty": torch.zeros(0, 3), "w": torch.ones(4)}
    delta = {"empty": torch.zeros(0, 3), "w": torch.full((4,), 0.25)}
    found = Breadcrumbs()(make_task_vectors(base, {"a": delta, "b": delta}))
    assert found["empty"].shape == (0, 3)
    assert found["w"].tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("largest", "smallest"), [(-0.1, 0.5), (0.1, -0.5), (0.5, 0.5), (1, 0), (float("nan"), 0.5)]
)
def test_shares_that_leave_nothing_are_refused(largest, smallest):
    with pytest.raises(UserError, match="add up to less than 1"):
        Breadcrumbs(largest=largest, smallest=smallest)
