"""The jobs of a sweep are known from files on disk: what began, what ended, and what was killed."""

import contextlib
import os
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from mergeability.commands import sweep
from mergeability.commands.job_records import KILLED, Record, Records
from mergeability.errors import UserError
from mergeability.files import hold_folder

MADE = []


def write_page(folder: Path, jobs: list[Path], beside=()) -> Path:
    """Stand in for a summary: a page that names its jobs."""
    MADE.append([path.name for path in jobs])
    page = folder / "page.html"
    page.write_text(" ".join(path.name for path in jobs))
    return page


def config(folder: Path, number: int):
    job = folder / str(number)
    (job / ".hydra").mkdir(parents=True, exist_ok=True)
    return OmegaConf.create(
        {
            "hydra": {
                "job": {"num": number},
                "overrides": {"task": [f"merge=m{number}"]},
                "runtime": {"output_dir": str(job)},
                "output_subdir": ".hydra",
            }
        }
    )


def returned(value: object) -> JobReturn:
    failed = isinstance(value, BaseException)
    ended = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
    ended.return_value = value
    return ended


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """A ledger at the start of a sweep of three jobs."""
    MADE.clear()
    made = sweep.Ledger(summary=f"{__name__}.write_page")
    monkeypatch.setattr(sweep, "get_method", lambda name: write_page)
    made.records, made.total = Records.of_new_start(tmp_path), 3
    sweep.Ledger.current = made
    yield made
    sweep.Ledger.current = None


def test_the_summary_holds_every_job_that_any_process_has_finished(ledger, tmp_path, capsys):
    # A job of another process is known by its file alone.
    elsewhere = Record(0, ("merge=m0",), str(tmp_path / "0"), "elsewhere", 1, 10.0, ended=11.0, value=0.5)
    ledger.records.write(elsewhere)
    ledger.on_job_start(config(tmp_path, 1))
    assert ledger.records.read()[1].ended is None
    ledger.on_job_end(config(tmp_path, 1), returned((0.25, float("nan"))))
    assert MADE == [["0", "1"]]
    first, second = ledger.records.read()
    assert first == elsewhere
    assert (second.overrides, second.host, second.pid) == (("merge=m1",), socket.gethostname(), os.getpid())
    assert (second.finished, second.value) == (True, [0.25, None])
    assert sweep.close_sweep() == 0
    # It is written once for the same jobs.
    assert MADE == [["0", "1"]]
    assert "page.html" in capsys.readouterr().out


def test_a_job_without_an_end_was_killed_and_the_others_are_summarised(ledger, tmp_path, capsys):
    for number in (0, 1):
        ledger.on_job_start(config(tmp_path, number))
    ledger.on_job_end(config(tmp_path, 1), returned(None))
    assert sweep.close_sweep() == 1
    told = capsys.readouterr()
    assert f"1 of 2 jobs failed:\n  merge=m0: {KILLED}" in told.err
    # Made again when the other one turned out to be killed: a summary names the jobs that failed.
    assert MADE == [["1"], ["1"]]
    assert [record.error for record in ledger.records.read()] == [KILLED, None]


def test_of_other_processes_the_last_one_to_end_summarises(ledger, tmp_path):
    copied = pickle.loads(pickle.dumps(ledger))
    assert not copied.away
    copied.process = ("elsewhere", 1)
    assert copied.away
    for number, expected in enumerate(([], [], [["0", "1", "2"]])):
        ledger.on_job_start(config(tmp_path, number))
        copied.on_job_end(config(tmp_path, number), returned(None))
        assert expected == MADE


def test_an_interrupt_is_no_failure_of_the_job_that_ran(ledger, tmp_path, capsys):
    ledger.on_job_start(config(tmp_path, 0))
    assert sweep.close_sweep(interrupted=True) == 0
    assert ledger.records.read()[0].ended is None


def test_a_failed_job_is_listed_by_its_sentence_and_left_out_of_the_summary(ledger, tmp_path, capsys):
    for number, value in enumerate((UserError("Expected a, got b."), None, UserError("c"))):
        ledger.on_job_start(config(tmp_path, number))
        ledger.on_job_end(config(tmp_path, number), returned(value))
    assert sweep.close_sweep() == 2
    assert "2 of 3 jobs failed:\n  merge=m0: Expected a, got b.\n  merge=m2: c\n" in capsys.readouterr().err
    assert MADE[-1] == ["1"]


def test_an_earlier_start_in_the_same_folder_counts_for_nothing(ledger, tmp_path):
    ledger.on_job_start(config(tmp_path, 2))
    ledger.on_job_end(config(tmp_path, 2), returned(None))
    earlier, ledger.records = ledger.records, Records.of_new_start(tmp_path)
    assert ledger.records.read() == []
    # A process of the earlier start that still runs says nothing when it ends.
    orphan = sweep.Ledger(summary=ledger.summary)
    orphan.records = earlier
    orphan.on_job_end(config(tmp_path, 2), returned(None))
    assert ledger.records.read() == earlier.read() == []
    assert sweep.close_sweep() == 0
    assert MADE == [["2"]]


def test_a_job_waits_for_a_process_that_an_earlier_start_left_in_its_folder(ledger, tmp_path):
    given = config(tmp_path, 0)
    with contextlib.ExitStack() as orphan, ThreadPoolExecutor(1) as pool:
        hold_folder(tmp_path / "0" / ".hydra", orphan)
        begun = pool.submit(ledger.on_job_start, given)
        time.sleep(0.1)
        assert not begun.done()
        assert ledger.records.read() == []
        orphan.close()
        begun.result(timeout=10)
    assert len(ledger.records.read()) == 1
    ledger.on_job_end(given, returned(None))


def test_a_summary_that_fails_is_a_failure_of_the_command(ledger, tmp_path, monkeypatch, capsys):
    def refuse(name):
        raise UserError("two settings")

    monkeypatch.setattr(sweep, "get_method", refuse)
    ledger.records.write(Record(0, (), str(tmp_path / "0"), "h", 1, 1.0, ended=2.0))
    assert sweep.close_sweep() == 1
    assert "Error: the summary of the sweep was not written: two settings" in capsys.readouterr().err


def test_the_end_of_a_job_is_not_replaced_by_that_of_its_launcher(tmp_path):
    records = Records.of_new_start(tmp_path)
    ended = Record(0, ("a=1",), str(tmp_path / "0"), "h", 1, 1.0, ended=2.0)
    records.write(ended)
    records.close(0, ("a=1",), tmp_path / "0", 3.0, KILLED)
    records.close(1, ("a=2",), tmp_path / "1", 3.0, KILLED)
    assert records.read()[0] == ended
    assert replace(records.read()[1], pid=1, host="h") == Record(
        1, ("a=2",), str(tmp_path / "1"), "h", 1, 3.0, 3.0, KILLED
    )
