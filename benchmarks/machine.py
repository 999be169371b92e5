"""Where a benchmark ran: processor, memory, versions. No paths, no names of hosts."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "scipy", "pandas", "safetensors", "mergeability")


def machine() -> dict[str, Any]:
    """Return the processor's model, the cores this process may use, and the memory in GiB."""
    affinity = getattr(os, "sched_getaffinity", None)
    total = _first(Path("/proc/meminfo"), r"MemTotal:\s+(\d+) kB")
    return {
        "processor": _first(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(int(total) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, Any]:
    """Return the versions of Python, of the libraries and of their linear algebra, and the threads in use."""
    # Only libraries that are loaded can be listed.
    import scipy.linalg  # noqa: F401
    import threadpoolctl
    import torch

    found: dict[str, Any] = {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in _PACKAGES}
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    libraries = {
        f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)" for pool in pools
    }
    mkl = re.search(r"Math Kernel Library Version ([\d.]+)", torch.__config__.show())
    if mkl:
        # Linked into torch, where threadpoolctl does not see it.
        libraries.add(f"mkl {mkl[1]} in torch ({torch.get_num_threads()} threads)")
    return found | {"linear_algebra": sorted(libraries)}


def load() -> float | None:
    """Return the average number of running processes over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _first(file: Path, pattern: str) -> str | None:
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found[1].strip() if found else None
