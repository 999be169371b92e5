"""Break the package on purpose, one line at a time, and see whether the tests notice.

    python tests/breaks/run.py                        every break, one worker a core
    python tests/breaks/run.py --only NAME NAME       some of them
    python tests/breaks/run.py --unbroken             the named tests pass where nothing is broken
    python tests/breaks/run.py --list                 what there is

`breaks.json` beside this file lists the breaks: a text that occurs once in a file, what replaces it, and the tests
that must fail then. Every worker has a copy of the working tree of its own, so nothing here is changed.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BREAKS = Path(__file__).resolve().with_name("breaks.json")
TIMEOUT = 600
# pytest's exit codes: tests failed; a module could not be collected.
_FAILED, _NOT_COLLECTED = 1, 2
_SHOWN_LINES = 6


@dataclass(frozen=True)
class Break:
    """One line made wrong.

    Attributes:
        name: short and unique, words joined by hyphens.
        file: the file that is changed, from the root of the repository.
        find: a text, part of one line, that occurs exactly once in the file.
        replace: what stands there instead.
        tests: pytest's names of the files or tests of which one must fail.
        why: what is wrong then.
        collection: whether a test module that cannot even be collected counts as caught.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    why: str
    collection: bool = False


@dataclass(frozen=True)
class Ended:
    """How a run of pytest ended: its exit code, None where it took too long; the seconds; what it wrote last."""

    code: int | None
    seconds: float
    output: str


def load(path: Path = BREAKS) -> list[Break]:
    """Read the breaks in their order."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [Break(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def faults(breaks: Sequence[Break], root: Path = ROOT) -> list[str]:
    """Say which breaks cannot be made in a tree, or name tests that are not there; one sentence each."""
    found = []
    names = [one.name for one in breaks]
    found += [
        f"{name}: the name is given twice." for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for one in breaks:
        path = root / one.file
        if not path.is_file():
            found.append(f"{one.name}: there is no {one.file}.")
            continue
        count = path.read_text(encoding="utf-8").count(one.find)
        if count != 1:
            found.append(f"{one.name}: expected once in {one.file}, found {count} times: {one.find!r}.")
        if one.find == one.replace or "\n" in one.find or not one.find:
            found.append(f"{one.name}: expected a part of one line and something else in its place.")
        if not one.tests:
            found.append(f"{one.name}: no test is named.")
        for test in one.tests:
            file, _, function = test.partition("::")
            if not (root / file).is_file():
                found.append(f"{one.name}: there is no {file}.")
            elif function and f"def {function.partition('[')[0]}(" not in (root / file).read_text("utf-8"):
                found.append(f"{one.name}: there is no {function} in {file}.")
    return found


def copy_tree(target: Path, root: Path = ROOT) -> None:
    """Copy what git tracks, and what it does not ignore, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in listed.split("\0"):
        source = root / name
        # A tracked file may be deleted here; an environment may be a link to a folder.
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # With its time stamp: bytecode of a broken file is then never taken for that of the whole one.
            shutil.copy2(source, target / name)


@contextmanager
def broken(one: Break, tree: Path) -> Iterator[None]:
    """Make a break in a tree, and undo it."""
    path = tree / one.file
    text, status = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(text.replace(one.find, one.replace, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def run_tests(tests: Sequence[str], tree: Path, timeout: float) -> Ended:
    """Run tests of a tree until the first fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    # In a tree of its own bytecode is in nobody's way, and without it every run would compile the package anew.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    code: int | None
    try:
        output, _ = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = None
    return Ended(code, time.monotonic() - began, output)


def verdict(one: Break, ended: Ended) -> str:
    """Say in a word whether a break was caught: a test failed, or what it needs did. A crash of pytest has that code too."""
    named = any(line.startswith(("FAILED ", "ERROR ")) for line in ended.output.splitlines())
    if named and (ended.code == _FAILED or (one.collection and ended.code == _NOT_COLLECTED)):
        return "caught"
    if ended.code == 0:
        return "NOT CAUGHT"
    return "TIMED OUT" if ended.code is None else f"PYTEST {ended.code}"


def in_trees(
    jobs: Sequence[tuple[str, Callable[[Path], tuple[str, bool, Ended]]]], workers: int
) -> list[str]:
    """Do jobs, each in one of the workers' trees; report each as it ends, and return the names of those that failed."""
    failed, began, trees = [], time.monotonic(), queue.SimpleQueue()
    lock = threading.Lock()

    def do(job: Callable[[Path], tuple[str, bool, Ended]]) -> tuple[str, bool, Ended]:
        with lock:
            tree = Path(tempfile.mkdtemp(dir=scratch)) if trees.empty() else trees.get()
            if not any(tree.iterdir()):
                copy_tree(tree)
        try:
            return job(tree)
        finally:
            trees.put(tree)

    with tempfile.TemporaryDirectory(prefix="breaks-") as scratch, ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(do, job): name for name, job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                word, fine, ended = future.result()
                left = (time.monotonic() - began) / done * (len(jobs) - done)
                _say(
                    f"[{done:3d}/{len(jobs)}] {word:<10} {ended.seconds:6.1f} s  {futures[future]}"
                    f"   (about {left / 60:.0f} min left)"
                )
                if not fine:
                    failed.append(futures[future])
                    lines = [line for line in ended.output.splitlines() if line.strip()]
                    _say("".join(f"        {line[:160]}\n" for line in lines[-_SHOWN_LINES:]).rstrip("\n"))
        finally:
            pool.shutdown(cancel_futures=True)
    _say(f"{len(jobs) - len(failed)} of {len(jobs)} in {(time.monotonic() - began) / 60:.1f} minutes.")
    return failed


def check_breaks(breaks: Sequence[Break], workers: int, timeout: float) -> list[str]:
    """Make each break and run its tests; return the names of those that no test caught."""

    def job(one: Break) -> Callable[[Path], tuple[str, bool, Ended]]:
        def check(tree: Path) -> tuple[str, bool, Ended]:
            with broken(one, tree):
                ended = run_tests(one.tests, tree, timeout)
            word = verdict(one, ended)
            return word, word == "caught", ended

        return check

    return in_trees([(one.name, job(one)) for one in breaks], workers)


def check_unbroken(breaks: Sequence[Break], workers: int, timeout: float) -> list[str]:
    """Run each named test where nothing is broken; return those that do not pass."""

    def job(test: str) -> Callable[[Path], tuple[str, bool, Ended]]:
        def check(tree: Path) -> tuple[str, bool, Ended]:
            ended = run_tests([test], tree, timeout)
            return "passed" if ended.code == 0 else "FAILED", ended.code == 0, ended

        return check

    tests = dict.fromkeys(test for one in breaks for test in one.tests)
    return in_trees([(test, job(test)) for test in tests], workers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code: 1 where something was not caught."""
    parser = argparse.ArgumentParser(
        description="Break the package on purpose and see whether the tests notice."
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="breaks at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these breaks alone")
    parser.add_argument("--unbroken", action="store_true", help="run the named tests without any break")
    parser.add_argument("--list", action="store_true", help="list the breaks and run nothing")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds a break may take")
    options = parser.parse_args(arguments)
    breaks = load()
    if options.only:
        unknown = set(options.only) - {one.name for one in breaks}
        if unknown:
            parser.error(f"there is no break {', '.join(sorted(unknown))}: --list names them")
        breaks = [one for one in breaks if one.name in options.only]
    if wrong := faults(breaks):
        _say("\n".join(wrong))
        return 1
    if options.list:
        _say("\n".join(f"{one.name:<44} {one.file}: {one.why}" for one in breaks))
        return 0
    check = check_unbroken if options.unbroken else check_breaks
    failed = check(breaks, max(1, options.workers), options.timeout)
    if failed:
        _say(f"{'Failed without a break' if options.unbroken else 'Not caught'}: {', '.join(failed)}")
    return 1 if failed else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
