import threading
import time

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mergeability.context import Run
from mergeability.context import run as workers
from mergeability.errors import UserError

SMALL = {"description": "things", "memory": 2**20}


def test_every_item_is_done_once_and_shown():
    done, shown = [], []

    def progress(items, description, total):
        shown.append((description, total))
        for item in items:
            shown.append("one")
            yield item

    Run(memory_budget=1, progress=progress).map(done.append, range(20), **SMALL)
    assert sorted(done) == list(range(20))
    assert shown == [("things", 20), *["one"] * 20]
    assert Run().map(done.append, [], **SMALL) == []


@pytest.mark.parametrize("memory", [None, 2**20])
def test_results_are_in_the_order_of_the_items(monkeypatch, memory):
    monkeypatch.setattr(workers, "cores", lambda: 4)
    items = list(range(50))
    found = Run(memory_budget=1).map(lambda item: item**2, items, description="things", memory=memory)
    assert found == [item**2 for item in items]


def test_without_a_size_one_runs_after_the_other_with_all_threads():
    done = []

    def do(item):
        done.append((item, threading.current_thread()))

    Run().map(do, range(20), description="things")
    assert done == [(item, threading.main_thread()) for item in range(20)]


@pytest.mark.parametrize("budget", [0, -1, float("inf"), float("nan"), True, "4"])
def test_a_memory_budget_is_a_positive_number(budget):
    with pytest.raises(UserError, match="Expected memory_budget to be a positive number"):
        Run(memory_budget=budget)


def test_the_order_differs_so_that_processes_do_not_follow_each_other(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 1)
    orders = []
    for _ in range(2):
        done = []
        Run(memory_budget=1).map(done.append, range(30), **SMALL)
        orders.append(done)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("memory", "budget", "expected"), [(2**28, 1, 4), (2**29, 1, 2), (2**30, 1, 1), (1, 1, 6)]
)
def test_no_more_items_at_a_time_than_the_budget_holds(monkeypatch, memory, budget, expected):
    monkeypatch.setattr(workers, "cores", lambda: 6)
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
    with pytest.raises(UserError, match=r"0\.5 GiB is too small for the things: one of them takes 2 GiB"):
        Run(memory_budget=0.5).map(print, [1], description="things", memory=2**31)


def test_an_error_ends_the_work_and_is_the_workers_own(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    done = []

    def do(item):
        if len(done) >= 2:
            raise UserError("something is wrong")
        done.append(item)

    with pytest.raises(UserError, match="something is wrong"):
        Run(memory_budget=1).map(do, range(1000), **SMALL)
    assert len(done) < 10


def test_linear_algebra_has_one_thread_per_worker_and_gets_its_threads_back():
    def threads():
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        inside = []
        Run(memory_budget=1).map(lambda _: inside.extend(threads()), [1], **SMALL)
        assert set(inside) == {1}
        assert set(threads()) == {2}
