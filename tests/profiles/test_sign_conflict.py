"""Counts of kept signs: streamed, stored, and resumed."""

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.context import Run
from mergeability.errors import UserError
from mergeability.linalg import grams
from mergeability.profiles import sign_conflict
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.sign_conflict import count_signs
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

SHAPES = {
    "visual.transformer.resblocks.0.attn.in_proj_weight": (12, 4),
    "visual.proj": (4, 9),
    "visual.conv1.weight": (2, 3, 4, 4),
    "visual.ln_post.bias": (5,),
}
TASKS = ("a", "b", "c")


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)

    def state(scale):
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = state(1)
    changes = {task: state(0.1) for task in TASKS}
    return {
        "base": base,
        **{task: {name: base[name] + change[name] for name in SHAPES} for task, change in changes.items()},
    }


@pytest.fixture
def load(tmp_path, states):
    def load_into(store=None, tasks=TASKS, dtype=torch.float32, **options):
        for name, state in states.items():
            tensors = {key: value.to(dtype) for key, value in state.items()}
            safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
        paths = {task: tmp_path / f"{states_name(task)}.safetensors" for task in tasks}
        return TaskVectors.load(paths, tmp_path / "base.safetensors", store=store, **options)

    return load_into


def states_name(task):
    """A task may be another one's copy: 'a again'."""
    return task.split()[0]


def dense(states, tasks, density, dtype=torch.float32):
    """Count with the whole task vectors at hand."""
    flat = [
        np.concatenate(
            [
                (
                    states[states_name(task)][name].to(dtype).float() - states["base"][name].to(dtype).float()
                ).flatten()
                for name in SHAPES
            ]
        )
        for task in tasks
    ]
    kept = [
        np.sign(x)
        * (np.abs(x) >= np.partition(np.abs(x), -int(density * len(x)) - 1)[-int(density * len(x)) - 1])
        for x in flat
    ]
    shared = [[int(((x != 0) & (y != 0)).sum()) for y in kept] for x in kept]
    opposite = [[int((x * y < 0).sum()) for y in kept] for x in kept]
    return shared, opposite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [5, 48, 2**16])
def test_counts_agree_with_whole_vectors_for_any_block(load, states, monkeypatch, block, dtype):
    monkeypatch.setattr(grams, "BLOCK", block)
    counts = count_signs(load(dtype=dtype), 0.2)
    shared, opposite = dense(states, TASKS, 0.2, dtype)
    assert counts.shared.tolist() == shared
    assert counts.opposite.tolist() == opposite
    assert np.diag(counts.shared).min() >= int(0.2 * sum(np.prod(shape) for shape in SHAPES.values()))
    assert counts.opposite.sum() > 0


def test_order_names_and_copies_change_nothing(load, states):
    tasks = ("c", "a again", "b", "a")
    counts = count_signs(load(tasks=tasks), 0.3)
    shared, opposite = dense(states, tasks, 0.3)
    assert counts.shared.tolist() == shared
    assert counts.opposite.tolist() == opposite


def test_another_layout_counts_the_same(load):
    plain = Profiles(load()).sign_counts(0.2)
    arranged = Profiles(load().with_layout(split_qkv=True, matricize="conv")).sign_counts(0.2)
    np.testing.assert_array_equal(plain.shared, arranged.shared)
    np.testing.assert_array_equal(plain.opposite, arranged.opposite)


def test_what_is_stored_is_found_again(load, tmp_path):
    store = Store(tmp_path / "store")
    first = count_signs(load(store), 0.2)
    assert (store.computed["magnitude"], store.computed["sign_count"]) == (3, 4)
    again = Store(tmp_path / "store")
    second = count_signs(load(again, tasks=("c", "a", "b")), 0.2)
    np.testing.assert_array_equal(second.shared, first.shared[np.ix_([2, 0, 1], [2, 0, 1])])
    assert not {"magnitude", "sign_count"} & set(again.computed)
    # Fewer models need no new threshold, another density does.
    count_signs(load(again, tasks=("a", "b")), 0.2)
    assert (again.computed["magnitude"], again.computed["sign_count"]) == (0, 4)
    count_signs(load(again), 0.4)
    assert (again.computed["magnitude"], again.computed["sign_count"]) == (3, 8)


def test_a_killed_run_goes_on_where_it_stopped(load, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    whole = sign_conflict._layer_counts

    def dying(vectors, models, thresholds, name):
        if store.computed["sign_count"] == 2:
            raise KilledError
        return whole(vectors, models, thresholds, name)

    # One after the other, so that it is known how many were filed.
    monkeypatch.setattr("mergeability.context.run.cores", lambda: 1)
    monkeypatch.setattr(sign_conflict, "_layer_counts", dying)
    store = Store(tmp_path / "store")
    with pytest.raises(KilledError):
        count_signs(load(store), 0.2)
    monkeypatch.setattr(sign_conflict, "_layer_counts", whole)
    again = Store(tmp_path / "store")
    counts = count_signs(load(again), 0.2)
    assert (again.computed["magnitude"], again.computed["sign_count"]) == (0, 2)
    np.testing.assert_array_equal(counts.shared, count_signs(load(), 0.2).shared)


def test_what_is_not_finite_is_named(load, states):
    states["b"]["visual.proj"][1, 2] = torch.nan
    with pytest.raises(UserError, match=r"'visual.proj' of the model of 'b'"):
        count_signs(load(), 0.2)


def test_no_more_than_a_block_is_read_at_a_time(load, monkeypatch):
    longest = []
    monkeypatch.setattr(grams, "BLOCK", 8)
    read = TaskVectors.read

    def watched(self, task, name, start=0, stop=None):
        found = read(self, task, name, start, stop)
        longest.append(len(found))
        return found

    monkeypatch.setattr(TaskVectors, "read", watched)
    count_signs(load(), 0.2)
    assert max(longest) == 8
    # Two passes for the thresholds, one for the pairs.
    assert sum(longest) == 3 * 3 * sum(int(np.prod(shape)) for shape in SHAPES.values())


def test_progress_and_budget(load):
    seen = {}

    def progress(items, description, total):
        seen[description] = total
        return items

    Profiles(load(), run=Run(progress=progress)).sign_counts()
    assert seen == {"largest entries": 3, "signs of all pairs": 4}
    with pytest.raises(UserError, match=r"memory budget of 0\.0001 GiB is too small"):
        count_signs(load(), 0.2, Run(memory_budget=0.0001))
