import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergeability.errors import UserError
from mergeability.merging import Ties
from mergeability.merging.ties import kth_smallest_magnitudes


def solved(make_task_vectors, rows, **options):
    """Merge models of one vector each, from a base of powers of two so that no delta is rounded."""
    names = [f"task{number}" for number in range(len(rows))]
    deltas = {name: {"w": torch.tensor(row)} for name, row in zip(names, rows, strict=True)}
    return Ties(**options)(make_task_vectors({"w": torch.full((len(rows[0]),), 8.0)}, deltas))["w"].tolist()


def test_trim_elect_and_disjoint_mean_by_hand(make_task_vectors):
    # D = 5, density 0.4: |τ| at least the 3rd smallest is kept, which is 3 entries.
    rows = [[4.0, -1.0, 2.0, 0.5, 3.0], [-1.0, -3.0, 4.0, 2.0, 0.5]]
    # Kept: [4, 0, 2, 0, 3] and [0, -3, 4, 2, 0]; no conflict is left.
    assert solved(make_task_vectors, rows, density=0.4) == [4.0, -3.0, 3.0, 2.0, 3.0]
    assert solved(make_task_vectors, rows, density=0.4, agg="sum") == [4.0, -3.0, 6.0, 2.0, 3.0]
    # Everything kept: signs +, -, +, +, + are elected and the -1 is left out.
    assert solved(make_task_vectors, rows, density=1) == [4.0, -2.0, 3.0, 1.25, 1.75]


def test_equal_magnitudes_at_the_limit_are_all_kept(make_task_vectors):
    rows = [[2.0, -2.0, 2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0, 1.0]]
    # The 4th smallest of the first is 2, of the second 1: three and five entries are kept.
    assert solved(make_task_vectors, rows, density=0.2) == [1.5, -2.0, 1.5, 1.0, 1.0]


def test_entries_that_cancel_take_the_sign_most_entries_elected(make_task_vectors):
    rows = [[2.0, -3.0, -1.0, 1.0], [-2.0, -1.0, -3.0, 1.0]]
    # Elected: 0, -, -, +; the majority is negative and decides the first.
    assert solved(make_task_vectors, rows, density=1) == [-2.0, -2.0, -2.0, 1.0]
    # No majority either: the entry stays where it was.
    rows = [[2.0, 3.0, -1.0], [-2.0, 1.0, -3.0]]
    assert solved(make_task_vectors, rows, density=1) == [0.0, 2.0, -2.0]


def test_scope_tensor_trims_every_tensor_by_itself(make_task_vectors, random_tensors):
    shapes = {"large": (40,), "small": (40,)}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("ab", start=1)}
    for delta in deltas.values():
        delta["small"] *= 0.01
    base = random_tensors(0, 1.0, shapes)
    vectors = make_task_vectors(base, deltas)
    assert not Ties()(vectors)["small"].any()
    merged = Ties(scope="tensor")(vectors)
    for name in shapes:
        alone = make_task_vectors(
            {name: base[name]}, {task: {name: delta[name]} for task, delta in deltas.items()}
        )
        assert torch.equal(merged[name], Ties()(alone)[name])


MAGNITUDES = st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@settings(max_examples=80, deadline=None)
@given(
    arrays(
        np.float32,
        (2, 13),
        elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]),
    ),
    st.integers(1, 13),
    st.integers(1, 12),
)
def test_the_streamed_selection_is_exact(values, k, cut):
    stack = torch.from_numpy(values)
    selected = kth_smallest_magnitudes(lambda: iter([stack[:, :cut], stack[:, cut:]]), k)
    np.testing.assert_array_equal(selected.numpy(), np.partition(np.abs(values), k - 1, axis=1)[:, k - 1])


@pytest.mark.parametrize("options", [{"density": 0}, {"density": 1.5}, {"scope": "layer"}, {"agg": "max"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=f"Expected {next(iter(options))}"):
        Ties(**options)
