"""Measure commands as processes: time, processor time and peak memory of the command alone."""

import sys

import pytest

from benchmarks.mergekit import _timed

MIB = 2**20


def test_the_peak_is_that_of_the_command_and_not_of_its_parent(tmp_path):
    # Written, so that it is resident: the parent is larger than the command.
    large = bytearray(b"x") * (400 * MIB)
    _, _, small = _timed([sys.executable, "-S", "-c", "pass"], tmp_path / "log")
    wall, busy, larger = _timed(
        [sys.executable, "-S", "-c", f"bytearray(b'x') * {200 * MIB}"], tmp_path / "log"
    )
    assert len(large) > 200 * MIB
    assert small < 100 * MIB < 200 * MIB <= larger < 300 * MIB
    assert busy > 0
    assert wall > 0


def test_a_command_that_fails_is_shown_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno such model"):
        _timed([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], tmp_path / "log")
