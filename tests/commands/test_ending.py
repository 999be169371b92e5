"""Commands end their process at once, but lose nothing by it."""

import os
import subprocess
import sys

import pytest

from mergeability.commands import ending
from mergeability.commands.ending import end_after

# The module by itself, without what its package imports.
IMPORT = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("ending", {ending.__file__!r})
module = module_from_spec(spec)
spec.loader.exec_module(module)
end_after = module.end_after
"""
PROGRAM = f"""{IMPORT}
import atexit, sys, threading, time

class Destroyed:
    def __del__(self):
        print("destroyed")

def work(code):
    atexit.register(print, "called at the end")
    threading.Thread(target=lambda: (time.sleep(0.2), print("the thread has ended"))).start()
    print("worked")
    if code is not None:
        sys.exit(code)

kept = Destroyed()
end_after(work, CODE)
"""


def ended(code: object, **options: object) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("CODE", repr(code))
    # Output waits in a buffer, as it does unless this variable is set.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", program], text=True, stderr=subprocess.PIPE, env=environment, **options
    )


@pytest.mark.parametrize(
    ("code", "expected", "told"),
    [(None, 0, ""), (3, 3, ""), ("no such thing", 1, "no such thing\n")],
    ids=["by itself", "a code", "a message"],
)
def test_threads_functions_and_output_are_waited_for(code, expected, told):
    found = ended(code, stdout=subprocess.PIPE)
    lines = ["worked", "the thread has ended", "called at the end"]
    # A message in place of a code is Python's to print, which then ends as usual.
    assert found.stdout.splitlines() == [*lines, *(["destroyed"] if told else [])]
    assert (found.returncode, found.stderr) == (expected, told)


def test_output_that_cannot_be_written_is_an_error():
    # A pipe that nobody reads.
    reading, writing = os.pipe()
    os.close(reading)
    found = ended(None, stdout=writing)
    os.close(writing)
    assert found.returncode == 120
    assert "BrokenPipeError" in found.stderr


def test_an_exception_is_reported():
    program = f"{IMPORT}end_after(lambda: 1 / 0)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 1
    assert "ZeroDivisionError" in found.stderr


@pytest.mark.parametrize("start", [["-m", "cProfile"], ["-i"]], ids=["a profiler", "an interactive session"])
def test_who_started_the_program_goes_on_after_it(tmp_path, start):
    program = tmp_path / "program.py"
    program.write_text(f"{IMPORT}end_after(print, 'worked')")
    found = subprocess.run(
        [sys.executable, *start, str(program)], input="print('went on')", capture_output=True, text=True
    )
    assert found.stdout.startswith("worked\n")
    assert ("cumtime" if "cProfile" in start else "went on") in found.stdout


def test_a_test_goes_on_after_it():
    assert end_after(lambda: None) is None
    with pytest.raises(SystemExit):
        end_after(sys.exit, 3)
