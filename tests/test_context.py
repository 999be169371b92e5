"""One loop over heavy units: every item once, results in order, within the budget, on the cores there are."""

import threading
import time

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mergeability import context
from mergeability.context import Clock, Run
from mergeability.errors import UserError

SMALL = {"description": "things", "memory": 2**20}


@pytest.mark.parametrize("memory", [2**20, None])
def test_every_item_is_done_once_and_shown_and_results_are_in_order(memory):
    done, shown = [], []

    def progress(items, description, total):
        shown.append((description, total))
        for item in items:
            shown.append("one")
            yield item

    def square(item):
        done.append(item)
        return item**2

    run = Run(progress=progress)
    found = run.map(square, range(20), description="things", memory=memory)
    assert found == [item**2 for item in range(20)]
    assert sorted(done) == list(range(20))
    assert shown == [("things", 20), *["one"] * 20]
    assert run.map(square, [], description="things", memory=memory) == []


def test_units_that_use_all_cores_run_one_after_the_other_in_order():
    done = []
    Run().map(done.append, range(30), description="models")
    assert done == list(range(30))


def test_the_order_differs_so_that_processes_do_not_follow_each_other(monkeypatch):
    monkeypatch.setattr(context, "cores", lambda: 1)
    orders = []
    for _ in range(2):
        done = []
        Run().map(done.append, range(30), **SMALL)
        orders.append(done)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("memory", "budget", "expected"), [(2**28, 1, 4), (2**29, 1, 2), (2**30, 1, 1), (1, 1, 6)]
)
def test_no_more_items_at_a_time_than_the_budget_holds(monkeypatch, memory, budget, expected):
    monkeypatch.setattr(context, "cores", lambda: 6)
    lock, now, most = threading.Lock(), 0, 0

    def do(_item):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1

    Run(memory_budget=budget).map(do, range(24), description="things", memory=memory)
    assert most == expected


def test_an_item_beyond_the_budget_is_refused():
    with pytest.raises(UserError, match=r"0\.5 GiB is too small for the things: one takes 2 GiB"):
        Run(memory_budget=0.5).map(print, [1], description="things", memory=2**31)


def test_an_error_ends_the_work_and_is_the_workers_own(monkeypatch):
    monkeypatch.setattr(context, "cores", lambda: 2)
    done = []

    def do(item):
        if len(done) >= 2:
            raise UserError("something is wrong")
        done.append(item)

    with pytest.raises(UserError, match="something is wrong"):
        Run().map(do, range(1000), **SMALL)
    assert len(done) < 10


def test_linear_algebra_has_one_thread_per_worker_and_gets_its_threads_back():
    def threads():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        inside = []
        Run().map(lambda _: inside.extend(threads()), [1], **SMALL)
        assert set(inside) == {1}
        assert set(threads()) == {2}


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf"), True, "4", None])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(UserError, match="memory_budget to be a positive number of GiB"):
        Run(memory_budget=budget)


def test_a_run_knows_its_device_and_a_wrong_one_is_refused():
    assert Run(device="cpu").device == "cpu"
    with pytest.raises(UserError, match="Expected device"):
        Run(device="tpu")


def test_a_stage_takes_its_time():
    clock = Clock()
    with clock.stage("waiting"):
        time.sleep(0.02)
    assert clock.seconds["waiting"] >= 0.02
