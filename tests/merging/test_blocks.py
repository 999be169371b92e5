"""Blocks of several models, read in threads: the same numbers in the same order, in bounded memory."""

import threading
import time

import pytest
import torch

from mergeability.errors import UserError
from mergeability.evaluation.merge import Merge
from mergeability.merging import Average, ConsensusTA, Dare, TaskArithmetic, Ties, apply
from mergeability.merging.rounding import Rounding
from mergeability.task_vectors import deltas, differences
from mergeability.weights.file_hashes import file_hash
from mergeability.weights.lazy_state import write_state

SHAPES = {"visual.w": (40, 30), "visual.b": (30,), "visual.in_proj_weight": (36, 12)}
BLOCK = 64


@pytest.fixture
def threaded(monkeypatch):
    """Return a function that sets the number of cores; every parameter is worth threads."""

    def use(cores):
        monkeypatch.setattr(differences, "cores", lambda: cores)
        monkeypatch.setattr(differences, "_WORTH_THREADS", 0)
        monkeypatch.setattr(deltas, "BLOCK", BLOCK)

    return use


@pytest.fixture
def make(make_task_vectors, random_tensors):
    def make_models(dtype=torch.float32, count=3, spoil=None, keep_below=0):
        base = random_tensors(0, shapes=SHAPES)
        changes = {f"m{seed}": random_tensors(seed, 0.05, SHAPES) for seed in range(count)}
        # Entries that cancel exactly, for which the majority of signs decides.
        base["visual.w"][-1] = 0
        changes["m0"]["visual.w"][-1] = -changes["m1"]["visual.w"][-1]
        # Tied weights, and running statistics.
        base |= {"visual.twin": base["visual.w"].clone(), "visual.bn.running_mean": torch.zeros(200)}
        for change in changes.values():
            change |= {"visual.twin": change["visual.w"].clone(), "visual.bn.running_mean": torch.ones(200)}
        if spoil is not None:
            changes["m2"]["visual.w"][spoil] = float("nan")
        return make_task_vectors(base, changes, dtype, keep_below=keep_below)

    return make_models


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_results_come_in_the_order_of_the_blocks(make, threaded, cores):
    vectors = make()
    threaded(cores)
    base = vectors.base("visual.w").flatten()
    models = torch.stack([vectors.model(task).tensor("visual.w").flatten() - base for task in vectors.tasks])

    def work(part, of_base, rows):
        # The first blocks take longest.
        time.sleep(0.02 if part.start < 4 * BLOCK else 0)
        return part, of_base.clone(), rows.clone()

    found = list(vectors.map_blocks("visual.w", work))
    assert [part.start for part, _, _ in found] == list(range(0, 1200, BLOCK))
    assert torch.equal(torch.cat([of_base for _, of_base, _ in found]), base)
    assert torch.equal(torch.cat([rows for _, _, rows in found], dim=1), models)


# Three models and the base take 1 KiB a block; fewer blocks than models would be no gain.
@pytest.mark.parametrize(("kib", "expected"), [(100, 4), (3, 3), (2, 1), (0, 1)])
def test_blocks_at_once_are_bounded_by_their_memory(make, threaded, monkeypatch, kib, expected):
    threaded(4)
    monkeypatch.setattr(differences, "_MEMORY", kib * 1024)
    lock, called, now, most, together = threading.Lock(), 0, 0, 0, threading.Barrier(expected)

    def work(*_):
        nonlocal called, now, most
        with lock:
            called, now = called + 1, now + 1
            most, first = max(most, now), called <= expected
        if first:
            together.wait(timeout=60)
        time.sleep(0.005)
        with lock:
            now -= 1

    assert len(list(make().map_blocks("visual.w", work))) == 19
    assert most == expected


METHODS = [
    Average(),
    TaskArithmetic(),
    ConsensusTA(),
    Ties(),
    Ties(scope="tensor"),
    Dare(),
    Dare(then=Ties()),
]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((method, torch.bfloat16) for method in METHODS),
        *((method, dtype) for method in (Average(), Ties()) for dtype in (torch.float32, torch.float64)),
    ],
    ids=str,
)
def test_threads_write_the_same_file_and_count_the_same_rounding(make, threaded, tmp_path, method, dtype):
    seen = []
    for cores in (1, 4):
        threaded(cores)
        rounding, path = Rounding(), tmp_path / f"{cores}.safetensors"
        write_state(path, Merge(make(dtype), method).lazy_state(0.7, rounding=rounding), {})
        seen.append((file_hash(path), rounding))
    assert seen[0] == seen[1]
    assert (rounding.moved > 0) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_threads_merge_split_tensors_as_whole_stacks_are_merged(make, threaded, method):
    expected = method(make(keep_below=2**20).with_layout(split_qkv=True))
    threaded(4)
    found = method(make().with_layout(split_qkv=True))
    assert {"visual.q_proj_weight", "visual.twin", "visual.bn.running_mean"} <= set(found)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_rounding_is_measured_only_where_it_is_asked_for(make, monkeypatch):
    calls = []
    monkeypatch.setattr(Rounding, "count", lambda *_: calls.append(1))
    vectors = make(torch.bfloat16)
    assert len(apply(vectors.base_checkpoint, Average()(vectors), 1)) == 5
    assert Merge(vectors, Average()).lazy_state(1)["visual.w"].dtype == torch.bfloat16
    assert calls == []
    assert Merge(vectors, Average()).lazy_state(1, rounding=Rounding())["visual.w"].dtype == torch.bfloat16
    assert calls != []


@pytest.mark.parametrize("place", [(0, 0), (39, 29)])
def test_a_value_that_is_not_finite_is_named_from_any_block(make, threaded, place):
    threaded(4)
    with pytest.raises(UserError, match=r"'visual\.w' of the model of 'm2' contains NaN"):
        list(make(spoil=place).map_blocks("visual.w", lambda *_: None))


def test_an_error_in_one_block_ends_the_others(make, threaded):
    threaded(4)
    done = []

    def work(part, *_):
        time.sleep(0.02)
        if part.start == 0:
            raise ZeroDivisionError
        done.append(part)

    with pytest.raises(ZeroDivisionError):
        list(make().map_blocks("visual.w", work))
    assert len(done) < 18


def test_threads_of_blocks_compute_with_one_thread_each(make, threaded):
    threaded(2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = set(
            make().map_blocks("visual.w", lambda *_: (torch.get_num_threads(), threading.get_ident()))
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for threads, _ in found} == {1}
    assert threading.get_ident() not in {thread for _, thread in found}
