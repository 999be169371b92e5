"""Divide a machine's cores and GPUs among the jobs of a sweep."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergeability.checks import is_number
from mergeability.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Hold the numbers of cores and GPUs of each job.

    Attributes:
        at_once: jobs that run at the same time.
        threads: of each job.
        gpus: of each job; 0.5 for two jobs on one GPU.
    """

    at_once: int
    threads: int
    gpus: float


def share(
    jobs: int,
    *,
    n_jobs: int | None,
    threads: int | None,
    gpus: float | int | None,
    cores: int,
    devices: int,
) -> Share:
    """Divide cores and GPUs among jobs, such that parallel jobs × threads ≈ cores.

    >>> share(3, n_jobs=None, threads=None, gpus=None, cores=16, devices=0)
    Share(at_once=3, threads=5, gpus=0)
    >>> share(9, n_jobs=None, threads=None, gpus=0.5, cores=16, devices=2)
    Share(at_once=4, threads=4, gpus=0.5)

    Args:
        jobs: number of jobs.
        n_jobs: jobs at once; None or -1: as many as the cores and GPUs allow.
        threads: of each job; None: what the cores allow.
        gpus: GPUs per job; None: 1 if there are GPUs.
        cores: of the machine.
        devices: its GPUs.

    Raises:
        UserError: a number is not positive, or exceeds the number of GPUs.
    """
    for name, value in (("n_jobs", None if n_jobs == -1 else n_jobs), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(
                f"Expected hydra.launcher.{name} to be a whole number of at least 1, or null, got {value}."
            )
    if gpus is not None and (not is_number(gpus) or gpus < 0):
        raise UserError(f"Expected hydra.launcher.gpus to be a number of at least 0, or null, got {gpus}.")
    each = (1 if devices else 0) if gpus is None else gpus
    if each > devices:
        raise UserError(
            f"Each job requires {each:g} GPUs (hydra.launcher.gpus), but this machine has {devices}."
        )
    limit = max(1, cores // (threads or 1))
    if each:
        limit = min(limit, int(devices / each))
    chosen = min(jobs, limit) if n_jobs is None or n_jobs == -1 else n_jobs
    if each and chosen > int(devices / each):
        raise UserError(
            f"{chosen} parallel jobs, each with {each:g} GPUs, require more than the {devices} GPUs of this"
            " machine. Choose a smaller hydra.launcher.n_jobs or hydra.launcher.gpus."
        )
    own = threads or max(1, cores // chosen)
    if chosen * own > cores:
        logger.warning(
            "%d parallel jobs of %d threads need more than the %d available cores.", chosen, own, cores
        )
    return Share(chosen, own, each)


def slot_devices(slot: int, gpus: float | int, devices: Sequence[str]) -> list[str]:
    """Return the GPUs of one slot, which runs one job at a time.

    >>> slot_devices(1, 2, ["0", "1", "2", "3"])
    ['2', '3']
    >>> slot_devices(1, 0.5, ["0", "1"])
    ['0']
    """
    if gpus < 1:
        return [devices[slot // int(1 / gpus)]] if gpus else []
    return list(devices[slot * int(gpus) : (slot + 1) * int(gpus)])


def visible_devices() -> list[str]:
    """List the NVIDIA GPUs that this process may use, without importing torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    known = Path("/proc/driver/nvidia/gpus")
    return [str(number) for number in range(len(list(known.iterdir())))] if known.is_dir() else []


def environment(threads: int, devices: Sequence[str] | None) -> dict[str, str]:
    """Return the environment variables of a job's process; without `devices`, CUDA_VISIBLE_DEVICES is not set."""
    chosen = {"OMP_NUM_THREADS": str(threads), "LOKY_MAX_CPU_COUNT": str(threads)}
    return chosen if devices is None else {**chosen, "CUDA_VISIBLE_DEVICES": ",".join(devices)}
