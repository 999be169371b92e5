"""Merging in blocks: the same numbers as from whole stacks, and memory that does not grow with the number of models."""

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mergeability.errors import UserError
from mergeability.merging import (
    TSVM,
    Average,
    Breadcrumbs,
    ConsensusTA,
    Dare,
    IsoC,
    IsoCTS,
    Slerp,
    TaskArithmetic,
    Ties,
)
from mergeability.task_vectors import deltas

SIDE = 96
SHAPES = {"visual.w": (SIDE, SIDE), "visual.b": (SIDE,), "visual.in_proj_weight": (18, 6), "visual.logit": ()}
METHODS = {
    "average": Average(),
    "ta": TaskArithmetic(),
    "consensus_ta": ConsensusTA(),
    "ties": Ties(),
    "ties, sum": Ties(density=0.5, agg="sum"),
    "ties by tensor": Ties(scope="tensor"),
    "dare": Dare(p=0.5),
    "dare, ties": Dare(p=0.5, then=Ties()),
    "dare, ties by tensor": Dare(p=0.5, then=Ties(scope="tensor")),
    "breadcrumbs": Breadcrumbs(),
    "tsv": TSVM(),
    "iso_c": IsoC(),
    "iso_c, truncated": IsoC(truncate=True),
    "iso_cts": IsoCTS(),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Alive(TorchDispatchMode):
    """Count the bytes of all tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.tensors, self.now, self.most = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr():
                self._see(tensor)
        return result

    def _see(self, tensor):
        # Views of one memory, of NumPy's too, may begin at one place and differ in size.
        place = (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        self.now += place[1] if not self.tensors[place] else 0
        self.tensors[place] += 1
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._forget, place)

    def _forget(self, place):
        self.tensors[place] -= 1
        self.now -= place[1] if not self.tensors[place] else 0


@pytest.fixture
def make(make_task_vectors, random_tensors):
    def make_models(count, dtype=torch.float32, **options):
        base = random_tensors(0, shapes=SHAPES)
        changes = {f"m{seed}": random_tensors(seed, 0.05, SHAPES) for seed in range(1, count + 1)}
        # Entries that cancel exactly need the majority's sign, and a second look at their tensor.
        changes["m2"]["visual.b"] = -changes["m1"]["visual.b"]
        base["visual.b"] = torch.full((SIDE,), 0.0)
        return make_task_vectors(base, changes, dtype, **options)

    return make_models


def most_alive(method, vectors):
    vectors.check_base()
    with Alive() as alive:
        method(vectors)
    return alive.most


@every_method
def test_memory_does_not_grow_with_the_number_of_models(make, monkeypatch, method):
    # Few enough blocks to be quick, each far smaller than the largest tensor.
    monkeypatch.setattr(deltas, "BLOCK", 128)
    few, many = (most_alive(method, make(count, keep_below=0)) for count in (2, 8))
    matrix = 4 * SIDE**2
    # The witness counts: the result and something of the largest tensor were alive.
    assert few > matrix
    # Six more models would be six more matrices.
    assert many - few < matrix / 2


def test_the_witness_sees_a_stack_of_all_models(make):
    few, many = (most_alive(lambda vectors: vectors.stack("visual.w"), make(count)) for count in (2, 8))
    assert many - few >= 6 * 4 * SIDE**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_method
def test_blocks_give_the_same_numbers_as_whole_stacks(make, monkeypatch, method, dtype):
    expected = method(make(4, dtype))
    monkeypatch.setattr(deltas, "BLOCK", 64)
    found = method(make(4, dtype, keep_below=0))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_slerp_reads_two_models_whatever_is_kept(make):
    expected, found = Slerp()(make(2)), Slerp()(make(2, keep_below=0))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@every_method
def test_a_layout_that_splits_tensors_is_merged_in_blocks_too(make, monkeypatch, method):
    expected = method(make(3).with_layout(split_qkv=True))
    monkeypatch.setattr(deltas, "BLOCK", 64)
    found = method(make(3, keep_below=0).with_layout(split_qkv=True))
    assert "visual.q_proj_weight" in found
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_method
def test_a_value_that_is_not_finite_is_named_in_any_block(make_task_vectors, random_tensors, method, value):
    base, first, second = (random_tensors(seed, 1.0 if seed == 0 else 0.05, SHAPES) for seed in range(3))
    second["visual.w"][-1, -1] = value
    vectors = make_task_vectors(base, {"a": first, "b": second}, keep_below=0, refuse_above=1e30)
    with pytest.raises(UserError, match=r"'visual.w' of the model of 'b' contains NaN or infinite"):
        method(vectors)


def test_a_sum_that_overflows_is_no_infinite_value(make_task_vectors):
    base = {"w": torch.zeros(300)}
    changes = {task: {"w": torch.full((300,), 1e37)} for task in "ab"}
    vectors = make_task_vectors(
        base, changes, keep_below=0, refuse_above=float("inf"), warn_above=float("inf")
    )
    assert Average()(vectors)["w"].tolist() == changes["a"]["w"].tolist()


def test_blocks_are_ranges_of_all_models(make):
    vectors = make(3, keep_below=0)
    whole = vectors.stack("visual.w").reshape(3, -1)
    parts = [(part, block.clone()) for part, block in vectors.blocks("visual.w", 100)]
    assert [part.start for part, _ in parts] == list(range(0, SIDE**2, 100))
    for part, block in parts:
        assert torch.equal(block, whole[:, part])
