"""Record the start and the end of each job of a sweep on disk.

Any process may run a job: the command's process, a pool worker, or a process on another machine. All write to
`<sweep folder>/.jobs/<start of the sweep>/`, one file per job, so the list of jobs is the same with every launcher. A
record without an end belongs to a running or killed job.
"""

import contextlib
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergeability.files import canonical_json, lock, read_object, write_text

logger = logging.getLogger(__name__)
FOLDER = ".jobs"
KILLED = (
    "ended without a word: killed, out of memory or out of time; start the same command again to finish it."
)


@dataclass(frozen=True)
class Record:
    """Hold the start and the end of one job.

    Attributes:
        number: index of the job in the sweep, from 0.
        overrides: its settings.
        folder: where its results are.
        host: the machine that runs it.
        pid: its process there.
        began: seconds since 1970.
        ended: seconds since 1970; None while it runs, and for a job that was killed.
        error: the sentence it failed with; None for success.
        value: one or more numbers that it returned to an optimising sweeper.
    """

    number: int
    overrides: tuple[str, ...]
    folder: str
    host: str
    pid: int
    began: float
    ended: float | None = None
    error: str | None = None
    value: Any = None

    @property
    def finished(self) -> bool:
        """Whether the job ended without an error."""
        return self.ended is not None and self.error is None


@dataclass(frozen=True)
class Records:
    """Read and write the records of one launch of a sweep.

    Attributes:
        sweep: the folder of the sweep.
        start: names this start of the sweep; records of earlier starts in the same folder are not read.
    """

    sweep: Path
    start: str

    @classmethod
    def of_new_start(cls, sweep: Path) -> "Records":
        """Create an empty set of records, and delete the records of earlier launches."""
        shutil.rmtree(sweep / FOLDER, ignore_errors=True)
        opened = cls(sweep, uuid.uuid4().hex[:12])
        opened.folder.mkdir(parents=True, exist_ok=True)
        return opened

    @property
    def folder(self) -> Path:
        """The folder of the records."""
        return self.sweep / FOLDER / self.start

    @property
    def replaced(self) -> bool:
        """Whether a later launch of the sweep replaced this launch; if so, running jobs of this launch are ignored."""
        return not self.folder.is_dir()

    def write(self, record: Record) -> None:
        """Write one record atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        write_text(self.folder / f"{record.number}.json", canonical_json(asdict(record)))

    def read(self) -> list[Record]:
        """Read all records in job order.

        Raises:
            UserError: a record is damaged.
        """
        if not self.folder.is_dir():
            return []
        found = []
        for path in self.folder.iterdir():
            fields = read_object(path) if path.name[0] != "." and path.suffix == ".json" else None
            if fields is not None:
                found.append(Record(**{**fields, "overrides": tuple(fields["overrides"])}))
        return sorted(found, key=lambda record: record.number)

    def close(self, number: int, overrides: Sequence[str], folder: Path, now: float, error: str) -> None:
        """Mark a job as failed if its record contains no end time; otherwise leave the record unchanged."""
        (old,) = [one for one in self.read() if one.number == number] or [
            Record(number, tuple(overrides), str(folder), socket.gethostname(), os.getpid(), now)
        ]
        if old.ended is None:
            self.write(replace(old, ended=now, error=error))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock, so that only one process at a time summarises the sweep."""
        with held(self.folder, logging.DEBUG):
            yield


@contextlib.contextmanager
def held(folder: Path, level: int = logging.INFO) -> Iterator[None]:
    """Wait until no other process holds the lock of a folder, and lock it; do nothing on file systems without locks."""
    if os.name == "nt":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if lock(descriptor, wait=False) is False:
            logger.log(level, "Waiting for another process that uses %s.", folder)
            lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
