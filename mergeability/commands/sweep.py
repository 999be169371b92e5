"""Record the jobs of a sweep, summarise their results, and estimate the remaining time."""

import contextlib
import errno
import json
import logging
import math
import os
import re
import socket
import sys
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_method
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mergeability.commands.folders import refusing, shown_path
from mergeability.commands.job_records import KILLED, Record, Records, held
from mergeability.commands.launchers import take_over
from mergeability.commands.launchers.jobs import QuietReturn
from mergeability.commands.loggers import log_sweep
from mergeability.commands.terminal import shown_text
from mergeability.errors import UserError, one_line, short
from mergeability.files import write_text

logger = logging.getLogger(__name__)
# In the folder of a job that has a process of its own: everything it printed.
TERMINAL = "terminal.log"
# Errors that more space would cure.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The error message of PyTorch when CPU memory is exhausted.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|Storage size calculation overflowed|out of memory"
)


class Ledger(Callback):
    """Record the start and the end of each job of a sweep, and update the sweep's summary after each job.

    The command's process creates one ledger, and launchers send copies to the processes that run jobs. Shared state is
    on disk (`job_records`). Hydra turns an exception in a callback into a warning and skips `on_multirun_end` after a
    failed job, so `commands.run` closes the ledger and sees to the exit code.
    """

    # Of the sweep that this process has started.
    current: "Ledger | None" = None

    def __init__(self, summary: str | None = None, beside: str | None = None) -> None:
        # The dotted name of a function (sweep folder, finished job folders, earlier ones beside them), imported only
        # when it is needed; and the folder of an earlier sweep whose jobs are summarised with these.
        self.summary, self.beside = summary, beside
        self.total: int | None = None
        self.began = time.time()
        self.records: Records | None = None
        self.config: DictConfig | None = None
        self.process = (socket.gethostname(), os.getpid())
        # Resources that launchers keep between batches of jobs: process pools, a cluster.
        self.closing = contextlib.ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """Leave pools of processes out of copies."""
        return {**self.__dict__, "closing": contextlib.ExitStack(), "config": None}

    @property
    def away(self) -> bool:
        """Whether this object is a copy in a process that a launcher started."""
        return self.process != (socket.gethostname(), os.getpid())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Store the number of jobs of the sweep before the first job starts."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message="Deprecated API features detected")
        with refusing():
            take_over(config.hydra.launcher)
        self.total, self.began = _count_jobs(config), time.time()
        self.records = Records.of_new_start(Path(config.hydra.sweep.dir).absolute())
        self.config = config
        Ledger.current = self

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the start of a job; if it runs in a separate process, also redirect its output to its folder."""
        if self.records is None:
            return
        folder = Path(config.hydra.runtime.output_dir)
        if self.away:
            _write_output_to(folder / TERMINAL)
        if config.hydra.output_subdir is not None:
            _hold(folder / config.hydra.output_subdir)
        self.records.write(
            Record(
                number=int(config.hydra.job.num),
                overrides=tuple(config.hydra.overrides.task),
                folder=str(folder),
                host=socket.gethostname(),
                pid=os.getpid(),
                began=time.time(),
            )
        )

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record whether a job finished or failed."""
        failed = job_return.status != JobStatus.COMPLETED
        # Otherwise Hydra would print "Error executing job with overrides" before the message.
        # Hydra creates the job's return value, so replacing its class is the only way to change how it raises.
        job_return.__class__ = QuietReturn
        raised = job_return._return_value
        error = str(user_error(raised) or f"{type(raised).__name__}: {raised}") if failed else None
        if (
            failed
            and user_error(raised) is None
            and not isinstance(raised, HydraException | OmegaConfBaseException)
        ):
            # For a bug, print the traceback here, because in a sweep Hydra shows only that of the first failed job.
            traceback.print_exception(raised)
        if self.records is None or self.records.replaced:
            _held.close()
            return
        folder = Path(config.hydra.runtime.output_dir)
        if failed and self.away:
            if user_error(raised) is None:
                error = f"{error}. The traceback is in {folder / TERMINAL}."
            # Arbitrary exceptions may not survive pickling on the way to the command's process.
            job_return._return_value = UserError(error)
        number = int(config.hydra.job.num)
        (record,) = [one for one in self.records.read() if one.number == number]
        self.records.write(
            replace(record, ended=time.time(), error=error, value=None if failed else _plain(raised))
        )
        _held.close()
        ended = sum(one.ended is not None for one in self.records.read())
        if not self.away:
            self.tell()
        # In worker processes only the last job updates the summary; otherwise the command's process does.
        if not self.away or ended == self.total:
            self.summarise()

    def tell(self) -> None:
        """Log the number of finished jobs and the estimated remaining time."""
        ended = sum(record.ended is not None for record in self.records.read()) if self.records else 0
        if self.total is not None and 0 < ended < self.total:
            logger.info("%s", _remaining(ended, self.total, time.time() - self.began))

    def summarise(self) -> Path | None:
        """Write the summary of the finished jobs unless it is up to date; return the path of its page."""
        if self.summary is None or self.records is None:
            return None
        # One process at a time: jobs on several machines may end simultaneously.
        with self.records.locked():
            finished = [record for record in self.records.read() if record.finished]
            if not finished:
                return None
            note = self.records.folder / "summary"
            known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
            # Summaries also list failed jobs, so these are part of the state.
            numbers = [[record.number, record.finished] for record in self.records.read() if record.ended]
            if known.get("jobs") != numbers:
                earlier = sorted(Path(self.beside).rglob("run.json")) if self.beside is not None else []
                page = get_method(self.summary)(
                    self.records.sweep,
                    [Path(record.folder) for record in finished],
                    beside=[found.parent for found in earlier],
                )
                known = {"jobs": numbers, "page": str(page)}
                write_text(note, json.dumps(known))
            return Path(known["page"])


def _plain(value: Any) -> Any:
    """Return a job's value as one or more finite numbers for JSON; None for anything else."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


# Holds the locks of the job that runs in this process.
_held = contextlib.ExitStack()


def _hold(folder: Path) -> None:
    """Lock a job's folder until the job ends, waiting for a process of an earlier launch of the sweep."""
    _held.close()
    _held.enter_context(held(folder))


def _write_output_to(path: Path) -> None:
    """Redirect the output of this process and its children from the terminal to a file."""
    logging.captureWarnings(True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with path.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _count_jobs(config: DictConfig) -> int | None:
    """Return the number of jobs of a sweep; None if the sweeper decides adaptively."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # As in the sweeper: typed overrides replace those of `hydra.sweeper.params`.
    given = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None))


def _remaining(ended: int, total: int, seconds: float) -> str:
    minutes = round(seconds / ended * (total - ended) / 60)
    return f"{ended} of {total} jobs ended; about {minutes // 60} h {minutes % 60:02d} min left at the pace so far."


def user_error(error: BaseException | None) -> UserError | None:
    """Find the user error in an exception's chain of causes, because Hydra's `instantiate` wraps exceptions.

    System errors, such as a missing permission, a full disk or a lack of memory, are also converted to user errors.
    """
    while error is not None:
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and error.strerror:
            place = f" {short(str(error.filename), 200)}" if error.filename is not None else ""
            first = (
                "Free some space, or choose" if error.errno in _FULL else "Change its permissions, or choose"
            )
            return UserError(
                f"Cannot use{place}: {error.strerror}. {first} another place, for results with paths.root=…."
            )
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
        ):
            return UserError(
                f"Out of memory: {short(one_line(error), 160)}. Choose a smaller batch size, a smaller model"
                " or fewer images."
            )
        error = error.__cause__
    return None


def close_sweep(*, interrupted: bool = False) -> int:
    """Print the failed jobs of a sweep and the path of its summary; return the number of failed jobs.

    Args:
        interrupted: whether the user stopped the sweep; its running jobs then do not count as failed.
    """
    ledger, Ledger.current = Ledger.current, None
    if ledger is None or ledger.records is None:
        return 0
    _held.close()
    ledger.closing.close()
    failures = 0
    page = None
    try:
        if not interrupted:
            for record in ledger.records.read():
                if record.ended is None:
                    ledger.records.close(
                        record.number, record.overrides, Path(record.folder), time.time(), KILLED
                    )
        page = ledger.summarise()
    except (UserError, OSError) as error:
        sys.stderr.write(f"Error: the summary of the sweep was not written: {shown_text(str(error))}\n")
        failures = 1
    if page is not None:
        sys.stdout.write(f"Summary of the sweep: {shown_path(page)}\n")
        if ledger.config is not None and not interrupted:
            log_sweep(ledger.config, ledger.records.sweep, page)
    jobs = ledger.records.read()
    failed = [record for record in jobs if record.error is not None]
    if len(jobs) > 1 and failed:
        sys.stderr.write(f"{len(failed)} of {len(jobs)} jobs failed:\n")
        for record in failed:
            sys.stderr.write(f"  {' '.join(record.overrides)}: {shown_text(str(record.error))}\n")
    return len(failed) + failures
