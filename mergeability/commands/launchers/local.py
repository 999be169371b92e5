"""Define the launchers for one machine, which use joblib or submitit."""

import queue
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from hydra.core.utils import JobReturn

from mergeability.commands.job_records import KILLED
from mergeability.commands.launchers.jobs import Job, ManyProcesses, failure, lost
from mergeability.commands.launchers.shares import environment, slot_devices, visible_devices
from mergeability.context import cores


class Slots(ManyProcesses):
    """Run a fixed number of jobs in parallel on this machine.

    A slot runs one job at a time, on its share of the GPUs.
    """

    def run_all(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """Run jobs; when a job ends, its slot starts the next one."""
        devices = visible_devices()
        division = self.divided(len(jobs), cores(), len(devices))
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(division.at_once):
            free.put(slot)

        def run_next(job: Job) -> JobReturn:
            slot = free.get()
            try:
                own = slot_devices(slot, division.gpus, devices)
                return self.run_one(replace(job, environment=environment(division.threads, own)), slot, own)
            finally:
                free.put(slot)

        pool = ThreadPoolExecutor(division.at_once)
        futures = [pool.submit(run_next, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        finally:
            # Threads do not receive an interrupt. So no further jobs are started, and running processes are
            # terminated here.
            if [future for future in futures if not (future.cancel() or future.done())]:
                self.stop()
            pool.shutdown()

    @abstractmethod
    def run_one(self, job: Job, slot: int, devices: Sequence[str]) -> JobReturn:
        """Run one job and wait for it."""

    def stop(self) -> None:
        """Terminate the processes of running jobs."""


class Joblib(Slots):
    """Run jobs in worker processes of loky, a part of joblib.

    Every slot has its own pool with one worker, so that a killed worker affects only its own job.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pools: dict[int, Any] = {}

    def setup(self, **given: Any) -> None:
        """Keep the worker processes until the sweep ends, because starting one and importing PyTorch takes seconds."""
        super().setup(**given)
        self.ledger.closing.callback(self.stop)

    def run_one(self, job: Job, slot: int, devices: Sequence[str]) -> JobReturn:
        """Run one job in the worker process that is reserved for `slot`."""
        from joblib.externals.loky import ProcessPoolExecutor

        if slot not in self.pools:
            self.pools[slot] = ProcessPoolExecutor(1)
        try:
            return self.pools[slot].submit(job).result()
        except BrokenProcessPool:
            self.pools.pop(slot).shutdown(kill_workers=True)
            return failure(KILLED)

    def stop(self) -> None:
        """Terminate all workers."""
        while self.pools:
            self.pools.popitem()[1].shutdown(kill_workers=True)


class SubmititLocal(Slots):
    """Run each job in a new process, started by submitit's local executor."""

    def __init__(self, submitit_folder: str, **options: Any) -> None:
        super().__init__(**options)
        self.folder = submitit_folder
        self.running: list[Any] = []

    def run_one(self, job: Job, slot: int, devices: Sequence[str]) -> JobReturn:
        """Run one job in a new process."""
        import submitit  # pyright: ignore[reportMissingImports]
        from submitit.core.utils import UncompletedJobError  # pyright: ignore[reportMissingImports]

        executor = submitit.LocalExecutor(self.folder)
        visible = {"gpus_per_node": len(devices), "visible_gpus": tuple(map(int, devices))} if devices else {}
        executor.update_parameters(**self.options, **visible)
        submitted = executor.submit(job)
        self.running.append(submitted)
        # Otherwise submitit waits 15 seconds for the results of a killed process.
        submitted.wait()
        try:
            return submitted.results()[0] if submitted.paths.result_pickle.exists() else failure(KILLED)
        except UncompletedJobError as error:
            return failure(lost(error, submitted.paths.stderr))

    def stop(self) -> None:
        """Interrupt the running jobs."""
        for submitted in self.running:
            submitted.cancel()
