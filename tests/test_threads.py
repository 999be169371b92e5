"""As many threads as idle cores: the arithmetic by hand, who decides, and what the system tells."""

import sys
import time

import pytest

from mergeability import threads
from mergeability.threads import Sample, choose_threads, idle_cores, sample


@pytest.mark.parametrize(
    ("idle", "own", "cores", "expected"),
    [
        (4.0, 0.0, 2, 2),  # two seconds on two cores, nobody computes
        (2.0, 2.0, 2, 2),  # this process alone uses one core
        (0.0, 1.0, 2, 1),  # others leave it half a core
        (0.0, 0.0, 2, 1),  # never below one
        (2.0, 2.0, 4, 2),  # two of four cores are taken by others
        (27.0, 2.0, 16, 14),
        (99.0, 2.0, 16, 16),  # clocks tick apart: never more than there are
    ],
)
def test_free_cores_are_those_that_others_leave(idle, own, cores, expected):
    assert idle_cores(Sample(10.0, 5.0, 1.0), Sample(12.0, 5.0 + idle, 1.0 + own), cores) == expected


def test_nothing_is_said_where_nothing_is_known():
    assert idle_cores(Sample(0.0, None, 0.0), Sample(1.0, None, 0.0), 2) is None
    assert idle_cores(Sample(1.0, 1.0, 0.0), Sample(1.0, 1.0, 0.0), 2) is None


@pytest.fixture
def busy(monkeypatch):
    monkeypatch.setattr(threads, "sample", lambda: Sample(11.0, 0.0, 0.5))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return Sample(10.0, 0.0, 0.0)


def test_a_busy_machine_gets_one_thread(busy):
    environment = {}
    assert choose_threads(busy, 2, environment) == 1
    assert environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_has_set_wins(busy, name):
    environment = {name: "7"}
    assert choose_threads(busy, 2, environment) is None
    assert environment == {name: "7"}


def test_an_idle_machine_and_an_imported_torch_change_nothing(busy, monkeypatch):
    environment = {}
    monkeypatch.setattr(threads, "sample", lambda: Sample(11.0, 1.6, 0.3))
    assert choose_threads(busy, 2, environment) is None
    monkeypatch.setattr(threads, "sample", lambda: Sample(11.0, 0.0, 0.5))
    monkeypatch.setitem(sys.modules, "torch", object())
    assert choose_threads(busy, 2, environment) is None
    assert environment == {}


def test_linux_tells_idle_time_of_the_allowed_cores(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9 9 0 0 0 0 0\ncpu0 1 2 3 400 50 0 0 0 0 0\ncpu1 1 2 3 700 80 0 0 0 0 0\nctxt 1\n"
    )
    monkeypatch.setattr(threads, "_PROC", stat)
    monkeypatch.setattr(threads.os, "sysconf", lambda _name: 100)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _process: {1})
    assert sample().idle == 7.8
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _process: {1, 5})
    assert sample().idle is None, "a core that the file does not name"
    monkeypatch.setattr(threads, "_PROC", tmp_path / "none")
    assert sample().idle is None


def test_a_real_sample_moves_with_the_clock():
    first = sample()
    time.sleep(0.05)
    second = sample()
    assert second.when > first.when
    assert first.idle is None or second.idle >= first.idle
