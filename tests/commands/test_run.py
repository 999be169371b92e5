"""How a command ends: one sentence for a mistake, a traceback for a defect."""

import os
import subprocess
import sys

import pytest

from mergeability import provenance
from mergeability.commands import dashboard, run
from mergeability.commands.sweep import user_error
from mergeability.errors import UserError


@pytest.fixture
def ended(monkeypatch, capsys, tmp_path, restored_logging):
    """Run a function as a command; return its exit code and what it wrote to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["analyze.py"])

    def call(main, verbose=""):
        monkeypatch.setenv("HYDRA_FULL_ERROR", verbose)
        try:
            run.run(main)
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def raises(error):
    def main():
        raise error

    return main


def test_a_mistake_is_one_sentence_and_with_full_errors_a_traceback_before_it(ended):
    assert ended(raises(UserError("No models."))) == (1, "Error: No models.\n")
    code, told = ended(raises(UserError("No models.")), verbose="1")
    assert code == 1
    assert told.startswith("Traceback")
    assert told.endswith("Error: No models.\n")


def test_an_interrupt_says_that_results_are_kept(ended):
    code, told = ended(raises(KeyboardInterrupt()))
    assert code == 130
    assert "Finished results were saved" in told


@pytest.mark.parametrize(
    "error", [ValueError("shapes"), RuntimeError("expected scalar type"), ZeroDivisionError()]
)
def test_a_defect_is_not_taken_for_a_mistake(ended, error):
    with pytest.raises(type(error)):
        ended(raises(error))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            MemoryError("Unable to allocate 9 TiB"),
            "Out of memory: Unable to allocate 9 TiB. Choose a smaller",
        ),
        (
            RuntimeError("CUDA out of memory. Tried"),
            "Out of memory: CUDA out of memory. Tried. Choose a smaller",
        ),
        (
            OSError(28, "No space left on device", "x"),
            "Cannot use x: No space left on device. Free some space",
        ),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_is_a_sentence(error, sentence):
    assert str(user_error(error)).startswith(sentence)
    wrapped = RuntimeError("while instantiating")
    wrapped.__cause__ = error
    assert str(user_error(wrapped)).startswith(sentence)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("No runs."), 1, "Error: No runs.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted. Nothing was written.\n"),
    ],
    ids=repr,
)
def test_a_dashboard_ends_in_one_sentence(monkeypatch, capsys, error, code, told):
    monkeypatch.setattr(dashboard, "gather", lambda *_: raises(error)())
    assert dashboard.main([]) == code
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", ""])
def test_a_page_of_no_numbers_is_refused(capsys, number):
    with pytest.raises(SystemExit) as stop:
        dashboard.main([f"--numbers={number}"])
    assert stop.value.code == 2
    assert f"expected a positive whole number, got '{number}'" in capsys.readouterr().err


def test_the_commit_is_that_of_the_checkout_if_there_is_one(tmp_path, monkeypatch):
    git = {"cwd": tmp_path, "check": True, "capture_output": True}
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "mergeability" / "provenance.py"))
    assert provenance.git_commit() is None
    subprocess.run(["git", "init", "-q"], **git)
    (tmp_path / "a").write_text("1")
    subprocess.run(["git", "add", "a"], **git)
    subprocess.run(["git", *identity, "commit", "-q", "-m", "a"], **git)
    head = subprocess.run(["git", "rev-parse", "HEAD"], **git).stdout.decode().strip()
    assert provenance.git_commit() == head
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", os.devnull)
    assert provenance.git_commit() is None
