"""Define the jobs that are sent to worker processes, and the base class of launchers."""

import contextlib
import logging
import os
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mergeability.commands.job_records import KILLED, Records
from mergeability.commands.launchers.shares import Share, share
from mergeability.commands.record import plain
from mergeability.errors import UserError, short

logger = logging.getLogger(__name__)


class SweepLedger(Protocol):
    """Define the methods of `sweep.Ledger` that launchers call."""

    records: Records | None
    total: int | None
    closing: contextlib.ExitStack

    def tell(self) -> None:
        """Log the number of jobs that have ended."""
        ...

    def summarise(self) -> Path | None:
        """Write the summary of the jobs that have finished so far."""
        ...


class QuietReturn(JobReturn):
    """Hold the result of a job; if the job failed, raise the job's exception without an extra message from Hydra."""

    @property
    def return_value(self) -> Any:
        """Return the job's return value, or raise its exception."""
        if self.status != JobStatus.COMPLETED:
            raise self._return_value
        return self._return_value


@dataclass(frozen=True)
class Job:
    """Hold one job in the form in which it is sent to a worker process.

    Attributes:
        config: its configuration, composed by the command.
        task_function: what it calls.
        context: Hydra's, with the callbacks.
        state: state of Hydra's singletons.
        directory: the working folder of the command.
        environment: variables of its process.
    """

    config: DictConfig
    task_function: TaskFunction
    context: HydraContext
    state: Any
    directory: str
    environment: Mapping[str, str]

    @property
    def number(self) -> int:
        """The index of the job in the sweep."""
        return int(self.config.hydra.job.num)

    def __call__(self) -> JobReturn:
        """Run the job as Hydra's own launcher does."""
        os.environ.update(self.environment)
        try:
            os.chdir(self.directory)
        except OSError as error:
            return failure(
                f"The machine {socket.gethostname()} has no folder {self.directory} ({error.strerror})."
            )
        setup_globals()
        Singleton.set_state(self.state)
        HydraConfig.instance().set_config(self.config)
        return run_job(
            hydra_context=self.context,
            task_function=self.task_function,
            config=self.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def checkpoint(self) -> Any:
        """Return this job in the form in which submitit queues it again after a preemption or timeout."""
        import submitit  # pyright: ignore[reportMissingImports]

        return submitit.helpers.DelayedSubmission(self)


def failure(sentence: str) -> JobReturn:
    """Return a job result with the status `FAILED` and an error message."""
    return QuietReturn(status=JobStatus.FAILED, _return_value=UserError(sentence))


class ManyProcesses(Launcher):
    """Run jobs in separate processes, so that a failing job does not affect the others."""

    def __init__(
        self,
        n_jobs: int | None = None,
        threads: int | None = None,
        gpus: float | int | None = None,
        **options: Any,
    ) -> None:
        self.n_jobs, self.threads, self.gpus = n_jobs, threads, gpus
        self.options = {name: plain(value) for name, value in options.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the configuration and the task function for the jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        (self.ledger,) = [one for one in hydra_context.callbacks.callbacks if hasattr(one, "records")]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and return their results in order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [
            self._composed(number, overrides)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        with telling(self.ledger):
            ended = self.run_all(jobs)
        return [self._recorded(job, one) for job, one in zip(jobs, ended, strict=True)]

    @abstractmethod
    def run_all(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """Run jobs; a job fails if its process is killed."""

    def divided(self, jobs: int, cores: int, devices: int) -> Share:
        """Divide the cores and GPUs among jobs; if the user set OMP_NUM_THREADS, every job uses that many threads."""
        chosen = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(chosen) if self.threads is None and chosen.isdecimal() and int(chosen) else self.threads
        found = share(jobs, n_jobs=self.n_jobs, threads=threads, gpus=self.gpus, cores=cores, devices=devices)
        logger.info(
            "Running %d jobs, %d in parallel, with %d threads each", jobs, found.at_once, found.threads
        )
        return found

    def _composed(self, number: int, overrides: Sequence[str]) -> Job:
        logger.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        state = Singleton.get_state()
        return Job(config, self.task_function, self.hydra_context, state, str(Path.cwd()), {})

    def _recorded(self, job: Job, ended: JobReturn) -> JobReturn:
        """Complete the job's record, where its own process did not."""
        records = self.ledger.records
        if records is None:
            return ended
        known = {record.number: record for record in records.read()}.get(job.number)
        failed = ended.status != JobStatus.COMPLETED
        if known is not None and known.ended is not None:
            # The process was killed after the job had ended, or the record has a more specific error than the launcher.
            if failed and known.error is None:
                ended = JobReturn(status=JobStatus.COMPLETED)
                ended.return_value = known.value
            elif known.error is not None:
                ended = failure(known.error)
            return ended
        folder = Path(job.config.hydra.sweep.dir) / str(job.config.hydra.sweep.subdir)
        sentence = (
            str(ended._return_value)
            if failed
            else f"its folder {folder} cannot be reached from this machine."
        )
        records.close(
            job.number, list(job.config.hydra.overrides.task), folder.absolute(), time.time(), sentence
        )
        return failure(sentence)


@contextlib.contextmanager
def telling(ledger: SweepLedger, every: float = 1.0) -> Iterator[None]:
    """Log the progress of the sweep and update its summary while the block runs."""
    over = threading.Event()

    def watch() -> None:
        told = 0
        while not over.wait(every):
            ended = sum(record.ended is not None for record in ledger.records.read()) if ledger.records else 0
            if ended != told:
                told = ended
                ledger.tell()
                try:
                    ledger.summarise()
                except (UserError, OSError) as error:
                    logger.warning("The summary could not be written yet: %s", error)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def lost(error: Exception, log: Path) -> str:
    """Describe a failure of the launcher or the worker process in one sentence."""
    if "has not produced any output" in str(error):
        return KILLED
    last = [line for line in str(error).splitlines() if line.strip(" -")]
    return f"{short(' '.join(last[-1:]), 300)} (its log: {log})"
