import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mergeability.errors import UserError
from mergeability.merging import Ties
from mergeability.task_vectors.magnitudes import magnitude_thresholds
from mergeability.task_vectors.vectors import TaskVectors


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


@pytest.mark.parametrize("agg", ["mean", "sum"])
@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("density", [0.2, 0.7, 1])
def test_it_follows_its_definition_on_tensors_of_any_size(make_task_vectors, agg, scope, density):
    # Small whole numbers: equal magnitudes at every limit, and sums that cancel exactly. The large tensor is
    # longer than what is merged at a time.
    shapes = {"large": (300, 300), "small": (7, 5), "number": (), "empty": (0, 4)}
    generator = torch.Generator().manual_seed(0)
    deltas = {
        task: {
            name: torch.randint(-4, 5, shape, generator=generator).float() for name, shape in shapes.items()
        }
        for task in "abc"
    }
    vectors = make_task_vectors({name: torch.full(shape, 16.0) for name, shape in shapes.items()}, deltas)
    found = Ties(density=density, scope=scope, agg=agg)(vectors)
    stacks = {name: np.stack([deltas[task][name].numpy() for task in "abc"]) for name in shapes}
    groups = [list(shapes)] if scope == "global" else [[name] for name in shapes if stacks[name].size]
    for names in groups:
        expected = by_definition(
            np.concatenate([stacks[name].reshape(3, -1) for name in names], 1), density, agg
        )
        merged = np.concatenate([found[name].numpy().reshape(-1) for name in names])
        np.testing.assert_allclose(merged, expected, rtol=1e-6)
    assert found["empty"].shape == (0, 4)


def by_definition(rows, density, agg):
    """Trim, elect and merge rows of whole numbers, one model each, as the paper says it."""
    size = rows.shape[1]
    limits = np.sort(np.abs(rows), axis=1)[:, max(1, size - int(density * size)) - 1]
    trimmed = np.where(np.abs(rows) >= limits[:, None], rows, 0)
    signs = np.sign(trimmed.sum(0))
    signs = np.where(signs == 0, np.sign(signs.sum()), signs)
    agreeing = np.where(np.sign(trimmed) == signs, trimmed, 0)
    count = np.count_nonzero(agreeing, axis=0) if agg == "mean" else 1
    return agreeing.sum(0) / np.maximum(count, 1)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        (2, 13),
        elements=st.floats(-(2.0**99), 2.0**99, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]),
    ),
    st.integers(0, 12),
    st.integers(1, 12),
)
def test_the_limit_is_selected_exactly(values, kept, cut):
    with tempfile.TemporaryDirectory() as folder:

        def save(name, row):
            path = Path(folder) / f"{name}.safetensors"
            safetensors.torch.save_file({"v": row[:cut].clone(), "w": row[cut:].clone()}, path)
            return path

        rows = dict(zip("ab", torch.from_numpy(values), strict=True))
        vectors = TaskVectors.load(
            {task: save(task, row) for task, row in rows.items()}, save("base", torch.zeros(13))
        )
        found = magnitude_thresholds(vectors, (kept + 0.5) / 13)
    expected = np.partition(np.abs(values), 12 - kept, axis=1)[:, 12 - kept]
    np.testing.assert_array_equal([found["a"], found["b"]], expected)


@pytest.mark.parametrize("options", [{"density": 0}, {"density": 1.5}, {"scope": "layer"}, {"agg": "max"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=f"Expected {next(iter(options))}"):
        Ties(**options)
