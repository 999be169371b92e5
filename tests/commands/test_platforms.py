"""What differs on other systems and Pythons than the one that runs these tests, imitated here."""

import argparse
import io
import json
import os
import subprocess
import sys

import pytest
import torch

from mergeability.__main__ import write_utf8


@pytest.fixture
def checks_of_python_3_14(monkeypatch):
    """Let argparse read each help text when its option is added, as Python 3.14 does."""
    added = argparse._ActionsContainer.add_argument

    def check_help(self, action):
        if action.help is not None and "%" not in action.help:
            return

    def add_argument(self, *names, **options):
        action = added(self, *names, **options)
        self._check_help(action)
        return action

    monkeypatch.setattr(argparse._ActionsContainer, "_check_help", check_help, raising=False)
    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)
    return check_help


def test_hydra_is_refused_by_python_3_14_without_help(checks_of_python_3_14):
    from hydra._internal.utils import get_args_parser

    # Once this passes, Hydra's help is text and nothing needs to be done about it.
    with pytest.raises(TypeError, match="LazyCompletionHelp"):
        get_args_parser()


def test_commands_run_on_python_3_14(checks_of_python_3_14, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = command("analyze", "--cfg", "job", "suite=smoke")
    assert ended.code == 0, ended.output
    assert "name: smoke" in ended.output
    # Other parsers are checked as always.
    assert argparse.ArgumentParser._check_help is checks_of_python_3_14
    argparse.ArgumentParser().add_argument("--fine", help="100 %% text")


def test_the_signs_of_formulas_are_written_where_the_code_page_lacks_them():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="cp1252")
    with pytest.raises(UnicodeEncodeError):
        stream.write("τ₁ − τ₂")
    write_utf8(stream)
    stream.write("τ₁ − τ₂")
    stream.flush()
    assert written.getvalue().decode() == "τ₁ − τ₂"


def test_the_command_writes_utf8_into_a_pipe():
    surroundings = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    arguments = [sys.executable, "-m", "mergeability", "show", "subspace_overlap"]
    ended = subprocess.run(arguments, capture_output=True, env=surroundings, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode()
    assert json.dumps(ended.stdout.decode()).count("\\u") > 0


@pytest.mark.parametrize("absent", ["preadv", "sched_getaffinity", "sysconf"])
def test_checkpoints_are_read_without_the_calls_that_windows_lacks(absent, monkeypatch, tmp_path):
    from mergeability import checkpoints, compare

    monkeypatch.delattr(os, absent, raising=False)
    weights = torch.arange(6.0).reshape(2, 3)
    for name, factor in {"base": 1, "a": 2, "b": 3}.items():
        # The first tensor moves the others from the beginning of the file.
        checkpoints.save(
            tmp_path / f"{name}.safetensors", {"bias": torch.ones(5), "weight": factor * weights}
        )
    base, a, b = (tmp_path / f"{name}.safetensors" for name in ("base", "a", "b"))
    table = compare(base, {"a": a, "b": b}, metrics=["task_vector_dot_product"]).table
    assert table["task_vector_dot_product"].item() == 2 * 55  # Σ i² for i = 1 … 5
