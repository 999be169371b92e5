"""All results of a run change in one step: whoever kills it finds those of one run, whole."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from mergeability import files
from mergeability.reporting import result_files
from mergeability.reporting.result_files import RESULTS, save

# What the two runs leave: neither writes every file, and both have a folder among them.
FIRST = (
    "pairs.csv",
    "models.csv",
    "layers.csv",
    "prediction.json",
    "prediction/method_choice.csv",
    "prediction/ablation.csv",
    "run.json",
    "report.html",
)
SECOND = (
    "pairs.csv",
    "sets.csv",
    "scores.csv",
    "prediction.json",
    "prediction/evidence.csv",
    "prediction/ablation.csv",
    "verdict.txt",
    "report.html",
)
OTHERS = {
    "analyze.log": "log",
    "merged/ties/a+b/card.json": "{}",
    ".hydra/config.yaml": "x: 1",
    "note.txt": "of a person",
}


def write(text, names):
    def written(_analysis, folder):
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return written


def results(folder: Path) -> dict[str, str]:
    """Read what lies in a run folder under the names of results."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path.read_text() for path in found}
    return {name: text for name, text in names.items() if name.split("/")[0] in RESULTS}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run folder with the results of an earlier run and other files."""
    folder = tmp_path / "runs" / "demo"
    monkeypatch.setattr(result_files, "_write", write("first", FIRST))
    save(None, folder)
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(result_files, "_write", write("second", SECOND))
    return folder


def check_others(folder):
    assert {name: (folder / name).read_text() for name in OTHERS} == OTHERS


def test_results_of_the_earlier_run_go_and_all_else_stays(folder):
    assert save(None, folder) == folder / "report.html"
    assert results(folder) == dict.fromkeys(SECOND, "second")
    check_others(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_an_open_log_goes_on_in_the_new_folder(folder):
    with (folder / "analyze.log").open("a") as log:
        save(None, folder)
        log.write(", continued")
    assert (folder / "analyze.log").read_text() == "log, continued"


def test_a_failure_while_writing_changes_nothing(folder, monkeypatch):
    def fails(_analysis, folder):
        write("second", SECOND)(None, folder)
        raise OSError("disk full")

    monkeypatch.setattr(result_files, "_write", fails)
    with pytest.raises(OSError, match="disk full"):
        save(None, folder)
    assert results(folder) == dict.fromkeys(FIRST, "first")
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


CALLS = ("link", "rename", "replace", "unlink", "rmdir", "mkdir", "chmod")


def saved_until(folder: Path, fatal: int, exchange: bool) -> bool:
    """Save in a child process that is killed before its `fatal`-th change of the disk; return whether it was."""
    child = os.fork()
    if child == 0:
        left = [fatal]

        def counted(function):
            def call(*arguments, **options):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        files._exchanged = counted(files._exchanged) if exchange else lambda *_folders: False
        save(None, folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "moved-aside"])
def test_killed_at_any_point_it_leaves_the_results_of_one_run(folder, tmp_path, exchange):
    """Every change of the disk is a point: in each of them the folder holds the results of one run."""
    whole = (dict.fromkeys(FIRST, "first"), dict.fromkeys(SECOND, "second"))
    seen, points = [], 0
    while True:
        place = tmp_path / f"{points}" / "demo"
        shutil.copytree(folder, place)
        killed = saved_until(place, points, exchange)
        if not exchange:
            # Without an exchange a moment remains in which the folder is away; the next run puts it back.
            files.sweep_folders(place)
        assert results(place) in whole, f"killed before change {points}"
        check_others(place)
        seen.append(whole.index(results(place)))
        points += 1
        if not killed:
            break
    assert points > 35  # the last one was not killed: 35 kills or more
    # First the old results, then, from one point on, the new ones.
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


@pytest.mark.parametrize("why", ["working folder", "mounted"])
def test_a_folder_that_cannot_be_replaced_gets_its_results_all_the_same(folder, monkeypatch, why):
    if why == "working folder":
        monkeypatch.chdir(folder)
    else:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    before = folder.stat().st_ino
    save(None, folder)
    assert folder.stat().st_ino == before
    assert results(folder) == dict.fromkeys(SECOND, "second")
    check_others(folder)


def test_what_killed_runs_leave_is_removed_when_it_is_old_and_nobodys(folder):
    old = files.LEFT_OVER + 60
    names = {
        "old": ".demo.1.partial",
        "held": ".demo.2.partial",
        "new": ".demo.3.partial",
        "other": ".demon.1.partial",
    }
    left = {what: folder.parent / name for what, name in names.items()}
    for path in left.values():
        path.mkdir()
        (path / "pairs.csv").write_text("half")
    for what in ("old", "held", "other"):
        moment = left[what].stat().st_mtime - old
        os.utime(left[what], (moment, moment))
    with files.contextlib.ExitStack() as held:
        assert files.hold_folder(left["held"], held)
        save(None, folder)
        assert {what for what, path in left.items() if path.exists()} == {"held", "new", "other"}
