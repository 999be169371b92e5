"""Define the launchers for clusters: Slurm and Ray."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from mergeability.commands.job_records import KILLED
from mergeability.commands.launchers.jobs import Job, ManyProcesses, failure, lost
from mergeability.commands.launchers.shares import environment, visible_devices
from mergeability.commands.record import plain
from mergeability.context import cores
from mergeability.context.ray_cluster import check_answer, prepare_ray
from mergeability.errors import UserError, one_line, short


class SubmititSlurm(ManyProcesses):
    """Run jobs as a job array in a Slurm queue."""

    def __init__(self, submitit_folder: str, max_num_timeout: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.max_num_timeout = submitit_folder, max_num_timeout

    def run_all(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """Submit all jobs and wait for them."""
        import submitit  # pyright: ignore[reportMissingImports]
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError  # pyright: ignore[reportMissingImports]

        absent = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
        if absent:
            raise UserError(
                f"hydra/launcher=submitit_slurm needs the Slurm commands {' and '.join(absent)}, which are not "
                "installed on this machine. "
                "Start the sweep on a login node of the cluster, or choose hydra/launcher=submitit_local."
            )
        executor = submitit.AutoExecutor(
            folder=self.folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout
        )
        threads = self.threads or 1
        shared = {"timeout_min", "mem_gb", "name", "stderr_to_stdout"}
        chosen = {name: value for name, value in self.options.items() if value is not None}
        executor.update_parameters(
            cpus_per_task=threads,
            **({"gpus_per_node": int(self.gpus)} if self.gpus else {}),
            **{name if name in shared else f"slurm_{name}": value for name, value in chosen.items()},
            **({"slurm_array_parallelism": self.n_jobs} if self.n_jobs else {}),
        )
        try:
            with executor.batch():
                submitted = [
                    executor.submit(replace(job, environment=environment(threads, None))) for job in jobs
                ]
        except (FailedSubmissionError, UncompletedJobError, subprocess.CalledProcessError) as error:
            raise UserError(f"Slurm rejected the jobs: {short(one_line(error), 300)}.") from error
        ended = []
        for one in submitted:
            try:
                ended.append(one.results()[0])
            except UncompletedJobError as error:
                ended.append(failure(lost(error, one.paths.stderr)))
        return ended


class Ray(ManyProcesses):
    """Run jobs on a Ray cluster, or on a local Ray instance that is started for the sweep."""

    def __init__(
        self, address: str | None = None, init: Any = None, remote: Any = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.address = address
        self.init, self.remote = (dict(plain(value or {})) for value in (init, remote))

    def run_all(self, jobs: Sequence[Job]) -> Sequence[JobReturn]:
        """Run jobs as Ray tasks without automatic retries."""
        prepare_ray()
        import ray  # pyright: ignore[reportMissingImports]
        from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray  # pyright: ignore[reportMissingImports]

        if not ray.is_initialized():
            start_ray(OmegaConf.create(self._init()))
            self.ledger.closing.callback(ray.shutdown)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        division = self.divided(len(jobs), int(total.get("CPU", 0)), int(total.get("GPU", 0)))
        threads = min(division.threads, int(max((node.get("CPU", 0) for node in nodes), default=0)))
        if threads < 1:
            raise UserError("The Ray cluster has no CPUs. Start its nodes with ray start --num-cpus=….")
        options = {
            "num_cpus": threads,
            "num_gpus": division.gpus,
            "max_retries": 0,
            **self.remote,
        }
        task = ray.remote(**options)(_call)
        started = [task.remote(replace(job, environment=environment(threads, None))) for job in jobs]
        return [_of_ray(one) for one in started]

    def _init(self) -> dict[str, Any]:
        if self.address is not None:
            check_answer(self.address, "hydra.launcher.address", "leave the address out to use this machine")
            return {"address": self.address, "log_to_driver": False, **self.init}
        here = cores()
        workers = here if self.n_jobs in (None, -1) else max(here, int(self.n_jobs or 1))
        return {
            "address": "local",
            "num_cpus": workers,
            "num_gpus": len(visible_devices()),
            "include_dashboard": False,
            "log_to_driver": False,
            **self.init,
        }


def _call(job: Job) -> JobReturn:
    return job()


def _of_ray(started: Any) -> JobReturn:
    import ray  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError, WorkerCrashedError  # pyright: ignore[reportMissingImports]

    try:
        return ray.get(started)
    except WorkerCrashedError:
        return failure(KILLED)
    except RayError as error:
        return failure(f"Ray: {short(one_line(error), 300)}")
