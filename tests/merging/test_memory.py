"""Merging in blocks: the same numbers as from whole stacks, and memory that does not grow with the number of models."""

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mergeability.errors import UserError
from mergeability.evaluation.merge import Merge
from mergeability.merging import (
    TSVM,
    Average,
    Breadcrumbs,
    ConsensusTA,
    Dare,
    Fisher,
    IsoC,
    IsoCTS,
    Slerp,
    TaskArithmetic,
    Ties,
    apply,
)
from mergeability.merging.application import applied
from mergeability.merging.stream import ByParameter, Streamed, Streams, mean, total
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
    few, many = (most_alive(lambda vectors: vectors["visual.w"], make(count)) for count in (2, 8))
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


@pytest.mark.parametrize("models", range(1, 8))
def test_a_few_models_are_added_in_the_order_of_pytorch(models):
    stack = torch.randn(models, 30, 4099, generator=torch.Generator().manual_seed(models))
    before = stack.clone()
    assert torch.equal(total("w", stack), stack.sum(0))
    assert torch.equal(mean("w", stack), stack.mean(0))
    assert torch.equal(stack, before)


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
    whole = vectors["visual.w"].reshape(3, -1)
    parts = list(vectors.map_blocks("visual.w", lambda part, _, block: (part, block.clone()), 100))
    assert [part.start for part, _ in parts] == list(range(0, SIDE**2, 100))
    for part, block in parts:
        assert torch.equal(block, whole[:, part])


# Merged task vectors whose tensors are computed on access.
LAYERS = 5
LAYERED = {"visual.in_proj_weight": (18, 6), "visual.proj": (8, 6), "visual.ln.weight": (6,)} | {
    f"visual.w{layer}": (SIDE, SIDE) for layer in range(LAYERS)
}


@pytest.fixture
def vectors(make_task_vectors, random_tensors):
    """Three models with a tied matrix, running statistics, and entries that cancel in the last tensor."""
    base = random_tensors(0, shapes=LAYERED)
    base |= {"visual.twin": base["visual.w0"].clone(), "visual.bn.running_mean": torch.zeros(6)}
    deltas = {task: random_tensors(seed, 0.05, LAYERED) for seed, task in enumerate("abc", start=1)}
    for delta in deltas.values():
        delta |= {"visual.twin": delta["visual.w0"], "visual.bn.running_mean": torch.ones(6)}
    last = f"visual.w{LAYERS - 1}"
    base[last] = torch.zeros(SIDE, SIDE)
    deltas["b"][last], deltas["c"][last] = -deltas["a"][last], torch.zeros(SIDE, SIDE)
    return make_task_vectors(base, deltas, keep_below=0)


@every_method
def test_each_tensor_is_that_of_the_whole_merge_in_any_order(vectors, method):
    whole = method(vectors)
    merged = method.streamed(vectors)
    assert isinstance(method, Streams)
    assert list(merged) == list(whole)
    for name in sorted(merged, reverse=True):
        assert torch.equal(merged[name], whole[name]), name
        assert merged.shapes[name] == tuple(whole[name].shape)


@every_method
def test_a_streamed_merge_keeps_no_merged_tensor(vectors, method):
    vectors.check_base()
    matrix, alive = 4 * SIDE**2, {}
    for name, merge in (("whole", method), ("streamed", lambda models: all(map(len, rows(method, models))))):
        with Alive() as counted:
            merge(vectors)
        alive[name] = counted.most
    # The last tensor comes with all others before it, or with none of them.
    assert alive["whole"] - alive["streamed"] > (LAYERS - 2) * matrix


def rows(method, models):
    merged = method.streamed(models)
    return (merged[name].reshape(-1) for name in merged)


def test_names_are_known_without_computing_a_tensor(vectors):
    def merge(name):
        raise AssertionError(name)

    merged = Streamed(vectors, merge)
    assert ("visual.w0" in merged, "visual.none" in merged, len(merged)) == (True, False, len(LAYERED) + 2)
    assert merged != Streamed(vectors, merge)
    assert len({merged, merged, Streamed(vectors, merge)}) == 2
    with pytest.raises(KeyError, match=r"visual\.none"):
        merged["visual.none"]


def test_an_error_in_a_merge_does_not_pass_for_an_unchanged_tensor(vectors):
    def merge(name):
        if name == "visual.w1":
            raise KeyError("inside")
        return torch.zeros(vectors.shapes[name])

    with pytest.raises(KeyError, match="inside"):
        applied(vectors.base_checkpoint, Streamed(vectors, merge), 1.0)["visual.w1"]


@pytest.mark.parametrize("method", [Average(), Ties(), Dare(then=Ties())])
def test_a_merge_that_is_written_never_holds_the_task_vector(vectors, method):
    merge = Merge(vectors, method)
    state = merge.lazy_state(0.5)
    expected = apply(vectors.base_checkpoint, method(vectors), 0.5)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert state["visual.steps"].item() == 7, "copied from the base"
    assert "direction" not in vars(merge)
    # Once it is known, it is used.
    merge.direction = {name: torch.zeros(shape) for name, shape in vectors.shapes.items()}
    base = vectors.base_checkpoint.tensor("visual.w1")
    assert torch.equal(merge.lazy_state(0.5)["visual.w1"], base)


def test_a_layout_that_splits_tensors_is_written_assembled(vectors):
    split = vectors.with_layout(split_qkv=True)
    assert (vectors.splits_tensors, split.splits_tensors) == (False, True)
    name, states = (
        "visual.in_proj_weight",
        [Merge(one, Average()).lazy_state(1.0) for one in (split, vectors)],
    )
    assert torch.equal(states[0][name], states[1][name])


def test_methods_without_streams_say_so():
    assert not isinstance(Fisher(), Streams)
    with pytest.raises(TypeError, match="abstract"):
        ByParameter()
    assert all(isinstance(method, Streams) for method in METHODS.values())
