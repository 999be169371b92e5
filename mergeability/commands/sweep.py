"""A ledger of a sweep's jobs: how each ended, the summary across them, the time left."""

import logging
import re
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mergeability.commands.folders import shown_path
from mergeability.errors import UserError, short

logger = logging.getLogger(__name__)
# PyTorch's words when memory on the CPU is out.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|Storage size calculation overflowed|out of memory"
)


@dataclass(frozen=True)
class Job:
    """How one job ended: its overrides, its folder, and the sentence it failed with, if it did."""

    overrides: tuple[str, ...]
    folder: Path
    error: str | None


class QuietReturn(JobReturn):
    """How a job ended; its exception is raised without a word of Hydra's."""

    @property
    def return_value(self) -> Any:
        """Return what the job returned, or raise what it raised."""
        if self.status != JobStatus.COMPLETED:
            raise self._return_value
        return self._return_value


class Ledger(Callback):
    """Remember how each job of a sweep ended, and refresh the sweep's summary after each.

    Hydra turns an exception in a callback into a warning and skips `on_multirun_end` after a failed job, so
    `commands.run` looks at this ledger and sees to the exit code.
    """

    jobs: list[Job] = []  # noqa: RUF012  (one ledger a process: Hydra makes the instances)
    summary_failed = False
    summary_page: Path | None = None

    def __init__(self, summary: str | None = None, beside: str | None = None) -> None:
        # The dotted name of a function (sweep folder, finished job folders, earlier ones beside them), imported only
        # when it is needed; and the folder of an earlier sweep whose jobs are summarised with these.
        self.summary, self.beside = summary, beside
        self.total: int | None = None
        self.began = time.monotonic()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the jobs to come; keep what Optuna's parts say while they are imported from the terminal."""
        logging.getLogger("alembic").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message="Deprecated API features detected")
        self.total, self.began = _count_jobs(config), time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the job."""
        failed = job_return.status != JobStatus.COMPLETED
        # Hydra would write "Error executing job with overrides" before the sentence.
        job_return.__class__ = QuietReturn
        raised = job_return._return_value
        error = str(user_error(raised) or f"{type(raised).__name__}: {raised}") if failed else None
        if (
            failed
            and user_error(raised) is None
            and not isinstance(raised, HydraException | OmegaConfBaseException)
        ):
            # A defect: in a sweep Hydra shows the traceback of the first failed job only.
            traceback.print_exception(raised)
        overrides = tuple(job_return.overrides or ())
        folder = Path(config.hydra.runtime.output_dir)
        Ledger.jobs.append(Job(overrides, folder, error))
        finished = [ended.folder for ended in Ledger.jobs if ended.error is None]
        if self.total is not None and self.total > len(Ledger.jobs):
            logger.info("%s", _remaining(len(Ledger.jobs), self.total, time.monotonic() - self.began))
        if config.hydra.mode == RunMode.MULTIRUN and self.summary is not None and finished:
            earlier = sorted(Path(self.beside).rglob("run.json")) if self.beside is not None else []
            Ledger.summary_failed = True
            Ledger.summary_page = get_method(self.summary)(
                Path(config.hydra.sweep.dir), finished, beside=[found.parent for found in earlier]
            )
            Ledger.summary_failed = False


def _count_jobs(config: DictConfig) -> int | None:
    """Say how many jobs a sweep has; None where its sweeper decides as it goes."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    if not str(sweeper._target_).endswith("BasicSweeper"):
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # As the sweeper itself does it: what is typed replaces what `hydra.sweeper.params` says.
    given = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    return sum(len(batch) for batch in BasicSweeper.split_arguments(overrides, max_batch_size=None))


def _remaining(ended: int, total: int, seconds: float) -> str:
    minutes = round(seconds / ended * (total - ended) / 60)
    return f"{ended} of {total} jobs ended; about {minutes // 60} h {minutes % 60:02d} min left at the pace so far."


def user_error(error: BaseException | None) -> UserError | None:
    """Find the user error behind an exception: Hydra's `instantiate` wraps what the called function raises.

    What the system refuses, such as a folder that cannot be made, a full disk or no more memory, is one too.
    """
    while error is not None:
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and error.strerror:
            place = f" {short(str(error.filename), 200)}" if error.filename is not None else ""
            return UserError(
                f"Cannot use{place}: {error.strerror}. Free some space, or choose another place with paths.root=…."
            )
        if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))
        ):
            return UserError(
                f"Out of memory: {short(' '.join(str(error).split()), 160)}. Choose smaller sizes."
            )
        error = error.__cause__
    return None


def close_sweep() -> int:
    """Say where the sweep's summary is and which of its jobs failed; return how many did."""
    if Ledger.summary_page is not None:
        sys.stdout.write(f"Summary of the sweep: {shown_path(Ledger.summary_page)}\n")
    failed = [ended for ended in Ledger.jobs if ended.error is not None]
    if len(Ledger.jobs) > 1 and failed:
        sys.stderr.write(f"{len(failed)} of {len(Ledger.jobs)} jobs failed:\n")
        for ended in failed:
            sys.stderr.write(f"  {' '.join(ended.overrides)}: {ended.error}\n")
    return len(failed)
