"""Set the number of PyTorch's threads to the number of idle cores, before torch is imported.

OpenMP threads wait for each other by spinning. If another program occupies a core, a running thread wastes its
core while another thread waits to be scheduled, thousands of times per second. A single thread does not have this
problem; `docs/decisions/0017-threads.md` has measurements.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from threadpoolctl import ThreadpoolController

logger = logging.getLogger(__name__)

# Variables by which users set the number of threads; if one is set, nothing is changed.
_CHOICES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Shorter measurements of idle time, in seconds, are unreliable.
_LEAST = 0.2
_PROC = Path("/proc/stat")


@dataclass(frozen=True)
class Sample:
    """Hold the total idle time of the cores up to one moment.

    Attributes:
        when: seconds of the clock.
        idle: seconds that the cores of this process were idle, summed over cores; None if that is not known.
        own: seconds of processor time that this process has used.
    """

    when: float
    idle: float | None
    own: float


def sample() -> Sample:
    """Read the idle time of the cores from the operating system."""
    return Sample(time.monotonic(), _idle_seconds(), time.process_time())


def choose_threads(
    began: Sample, cores: int, environment: MutableMapping[str, str] = os.environ
) -> int | None:
    """Set OMP_NUM_THREADS to the number of idle cores, at least 1.

    Args:
        began: a sample taken when the command started; idle time since then is what counts.
        cores: the cores that this process may use.
        environment: where the variable is set.

    Returns:
        The number; None if nothing was set: the user has chosen, torch is imported already, all cores are idle, or
        the system does not tell.
    """
    if any(name in environment for name in _CHOICES) or "torch" in sys.modules:
        return None
    time.sleep(max(0.0, _LEAST - (time.monotonic() - began.when)))
    threads = idle_cores(began, sample(), cores)
    if threads is None or threads >= cores:
        return None
    environment["OMP_NUM_THREADS"] = str(threads)
    logger.info(
        "Computing with %d of %d cores, because other programs use the others. To use all cores, set"
        " OMP_NUM_THREADS=%d.",
        threads,
        cores,
        cores,
    )
    return threads


def idle_cores(began: Sample, ended: Sample, cores: int) -> int | None:
    """Return the number of cores, at least 1, that were idle between two measurements; None if unknown."""
    if began.idle is None or ended.idle is None or ended.when <= began.when:
        return None
    free = (ended.idle - began.idle + ended.own - began.own) / (ended.when - began.when)
    return min(max(1, round(free)), cores)


def _idle_seconds() -> float | None:
    """Sum the idle time of the cores this process may use, from Linux's /proc/stat."""
    try:
        lines = _PROC.read_text(encoding="ascii").splitlines()
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        # The file or function exists only on Linux.
        return None
    fields = [line.split() for line in lines]
    # user, nice, system, idle, iowait, …: a core that waits for a disk is free to compute.
    found = [int(one[4]) + int(one[5]) for one in fields if one and one[0] in ours]
    return sum(found) / ticks if len(found) == len(ours) else None


def one_blas_thread() -> AbstractContextManager[object]:
    """Return a context manager that limits linear algebra in NumPy and SciPy to one thread.

    Examples:
        >>> import numpy as np
        >>> with one_blas_thread():
        ...     float(np.linalg.norm([3.0, 4.0]))
        5.0
    """
    return _thread_pools(len(sys.modules)).limit(limits=1, user_api="blas")


def one_openmp_thread() -> AbstractContextManager[object]:
    """Return a context manager that limits PyTorch's operations to one thread.

    For short operations between those of other threads: after each operation PyTorch's threads spin for a while, on
    cores that the others need.

    Examples:
        >>> import torch
        >>> with one_openmp_thread():
        ...     torch.get_num_threads()
        1
    """
    return _thread_pools(len(sys.modules)).limit(limits=1, user_api="openmp")


def openmp_limiter() -> Callable[[], None]:
    """Return a function that limits PyTorch's operations to one thread in the new thread that calls it."""
    # The libraries are found here, because several threads must not search for them at the same time.
    pools = _thread_pools(len(sys.modules))

    def limit() -> None:
        # PyTorch sets the number at its first operation in a thread.
        sys.modules["torch"].get_num_threads()
        pools.limit(limits=1, user_api="openmp")

    return limit


@lru_cache(maxsize=1)
def _thread_pools(imported: int) -> ThreadpoolController:
    # Finding the libraries takes longer than a small decomposition; a new one can only come with a new module.
    return ThreadpoolController()
