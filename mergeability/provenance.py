"""Where a result comes from: versions, commit, machine; recorded in every card and `run.json`."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "open_clip_torch",
    "numpy",
    "scikit-learn",
    "scipy",
    "pandas",
)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries the numbers depend on."""
    found = {"python": platform.python_version(), "mergeability": metadata.version("mergeability")}
    return found | {name: metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Return the source's commit, with `-dirty` where the tree has changes; None outside its own checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        # Installed somewhere below another project's checkout, whose commit says nothing about this one.
        return None
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def provenance() -> dict:
    """Return versions, commit, platform and the time, as a JSON-able record."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
