"""Read the title, verdict, command and date of finished runs from their folders."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import quote

import yaml

from mergeability.errors import printable

SUMMARIES = {"summary.html": "Methods", "ablation.html": "Fine-tuning", "evidence.html": "Evidence"}
"""Pages of sweeps, with titles for those that have none."""

# Folders that hold no runs: what runs are made of, and parts of them.
_PRUNED = {"store", "checkpoints", "merged", "csv", "wandb", "prediction"}
# Title and first sentence of a page are near its beginning; its scripts are megabytes.
_HEAD = 64 * 1024


@dataclass(frozen=True)
class RunLine:
    """Hold the title, verdict, command and date of a finished run.

    Attributes:
        page: its report, or the page of a sweep.
        title: of the page.
        verdict: the answer in one sentence, or the first sentence of the page of a sweep.
        command: that made it; empty if unknown.
        finished: when it ended, in ISO format.
    """

    page: Path
    title: str
    verdict: str = ""
    command: str = ""
    finished: str = ""

    def link(self, base: Path) -> str:
        """Return the URL of the run's page, relative to a folder."""
        try:
            return quote(os.fsencode(Path(os.path.relpath(self.page.resolve(), base.resolve())).as_posix()))
        except ValueError:  # another drive on Windows
            return self.page.resolve().as_uri()


def run_line(folder: Path) -> RunLine | None:
    r"""Read the description of a run from its folder; return None if the folder contains no finished run.

    Args:
        folder: of an analysis, with `report.html`, or of a sweep, with one of `SUMMARIES`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.reporting.run_lines import run_line
        >>> with TemporaryDirectory() as name:
        ...     _ = (Path(name) / "report.html").write_text("<title>Six tasks</title>")
        ...     _ = (Path(name) / "verdict.txt").write_text("Two models\n\nMerge by ties.\n")
        ...     _ = (Path(name) / "run.json").write_text('{"finished_at": "2026-01-01T00:00:00+00:00"}')
        ...     line = run_line(Path(name))
        >>> line.title, line.verdict, line.finished
        ('Six tasks', 'Merge by ties.', '2026-01-01T00:00:00+00:00')
    """
    report = folder / "report.html"
    if report.is_file() and (folder / "run.json").is_file():
        record = _record(folder / "run.json")
        lines = _text(folder / "verdict.txt").splitlines()
        return RunLine(
            report,
            _title(report) or folder.name,
            printable(lines[2]) if len(lines) > 2 else "",
            printable(str(record.get("command") or "")),
            printable(str(record.get("finished_at") or "")),
        )
    for name, title in SUMMARIES.items():
        if (folder / name).is_file():
            page = folder / name
            first = _found(page, r'<p class="answer">(.*?)</p>|<ul class="lead"><li>(.*?)</li>')
            return RunLine(page, _title(page) or title, first, _sweep_command(folder), _changed(page))
    return None


def run_lines(root: Path) -> list[RunLine]:
    """Read the descriptions of all runs in a folder, newest first; skip folders that cannot be read."""
    found = [line for folder in _folders(root) if (line := run_line(folder)) is not None]
    return sorted(found, key=lambda line: line.finished, reverse=True)


def _folders(root: Path) -> Iterator[Path]:
    for place, inner, files in os.walk(root):
        if "store.json" in files:
            inner.clear()
            continue
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _PRUNED)
        yield Path(place)
        if "run.json" in files:
            inner.clear()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _record(path: Path) -> dict:
    try:
        record = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _title(page: Path) -> str:
    return _found(page, r"<title>(.*?)</title>")


def _found(page: Path, pattern: str) -> str:
    """Return the text of the first element near the beginning of a page that a pattern finds."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            found = re.search(pattern, file.read(_HEAD), re.DOTALL)
    except OSError:
        return ""
    return (
        "" if found is None else printable(unescape(next(one for one in found.groups() if one is not None)))
    )


def _sweep_command(folder: Path) -> str:
    """Read the command of a sweep from the file that Hydra leaves in its folder."""
    try:
        overrides = yaml.safe_load(_text(folder / "multirun.yaml"))["hydra"]["overrides"]["task"]
        return printable(shlex.join(["python", "analyze.py", "-m", *map(str, overrides)]))
    except (yaml.YAMLError, TypeError, KeyError):
        return ""


def _changed(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
