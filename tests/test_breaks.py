"""The recorded breaks can be made: `make test-breaks` makes each and runs the tests that must fail then."""

import runpy
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNNER = runpy.run_path(str(ROOT / "tests/breaks/run.py"))
BREAKS = RUNNER["load"]()


def test_every_break_can_be_made_and_names_tests_that_are_there():
    assert RUNNER["faults"](BREAKS) == []


def test_every_package_has_breaks_that_must_be_noticed():
    assert len(BREAKS) >= 60
    counts = Counter(Path(one.file).parts[1] for one in BREAKS)
    packages = {path.parent.name for path in (ROOT / "mergeability").glob("*/__init__.py")}
    assert {package: counts[package] for package in packages if counts[package] < 2} == {}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"file": "gone.py"}, "there is no gone.py"),
        ({"find": "no such text"}, "found 0 times"),
        ({"find": "e"}, "times: 'e'"),
        ({"replace": BREAKS[0].find}, "something else in its place"),
        ({"tests": ()}, "no test is named"),
        ({"tests": ("tests/test_gone.py",)}, "there is no tests/test_gone.py"),
        ({"tests": ("tests/test_breaks.py::test_gone",)}, "there is no test_gone"),
    ],
)
def test_a_break_that_cannot_be_made_is_named(change, sentence):
    (found,) = RUNNER["faults"]([RUNNER["Break"](**{**vars(BREAKS[0]), **change})])
    assert sentence in found


def test_a_break_is_made_and_undone(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("x = 1 < 2\n")
    before = path.stat().st_mtime_ns
    one = RUNNER["Break"]("less", "module.py", "1 < 2", "1 > 2", ("tests/test_breaks.py",), "it is not")
    with RUNNER["broken"](one, tmp_path):
        assert path.read_text() == "x = 1 > 2\n"
    assert path.read_text() == "x = 1 < 2\n"
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("code", "output", "collection", "word"),
    [
        (1, "FAILED tests/x.py::test_y - assert", False, "caught"),
        (1, "ERROR tests/x.py::test_y - ValueError", False, "caught"),
        (1, "Traceback of pytest itself", False, "PYTEST 1"),
        (0, "1 passed", False, "NOT CAUGHT"),
        (2, "ERROR tests/x.py", False, "PYTEST 2"),
        (2, "ERROR tests/x.py", True, "caught"),
        (5, "no tests ran", True, "PYTEST 5"),
        (None, "", False, "TIMED OUT"),
    ],
)
def test_only_a_failing_test_catches_a_break(code, output, collection, word):
    one = RUNNER["Break"]("a", "b", "c", "d", ("e",), "f", collection)
    assert RUNNER["verdict"](one, RUNNER["Ended"](code, 1.0, output)) == word
