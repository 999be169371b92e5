"""Progress is shown on a terminal, and nowhere else."""

import io
import re

import pytest

from mergeability.progress import no_progress, track


@pytest.mark.parametrize("terminal", [True, False])
def test_items_pass_and_a_terminal_shows_how_many_are_done(monkeypatch, terminal):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert list(track("abc", "reading models", 3)) == ["a", "b", "c"]
    assert bool(re.search(r"reading models.*3/3.*left", shown.getvalue(), re.DOTALL)) == terminal
    assert terminal or shown.getvalue() == ""


def test_no_progress_is_the_loop_itself():
    items = [1, 2]
    assert no_progress(items, "reading models", 2) is items
