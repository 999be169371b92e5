"""Record the versions, commit and machine that produced results."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

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

_PENALTIES = "mergeability.finetuning.penalties"
# Dotted name of a class when it was first hashed → its current name. Hashes of settings (`card.json`)
# and store keys always use the first name, so that moving a class does not invalidate trainings or stored values.
MOVED = {
    "mergeability.data.layouts.Layout": "mergeability.data.real.layouts.Layout",
    f"{_PENALTIES}.mergeability.Mergeability": f"{_PENALTIES}.weighted_sum.WeightedSum",
}
_FIRST = {now: first for first, now in MOVED.items()}


def published_name(name: str) -> str:
    """Return the dotted name that represents a class in hashes: the one under which the class was first published."""
    return _FIRST.get(name, name)


def current_name(name: str) -> str:
    """Return the current dotted name of a class, given the dotted name under which it was first published."""
    return MOVED.get(name, name)


def class_name(value: Any) -> str:
    """Return the dotted name under which a value's class was first published; keys of the store contain this name."""
    kind = type(value)
    return published_name(f"{kind.__module__}.{kind.__qualname__}")


def with_published_names(settings: Any) -> Any:
    """Replace every `_target_` in nested settings by the name under which it was first published."""
    if isinstance(settings, Mapping):
        return {
            name: published_name(value)
            if name == "_target_" and isinstance(value, str)
            else with_published_names(value)
            for name, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [with_published_names(value) for value in settings]
    return settings


@cache
def version(package: str) -> str:
    """Return the version of an installed package; versions are cached because they are requested often.

    Examples:
        >>> version("mergeability") == versions()["mergeability"]
        True
    """
    return metadata.version(package)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries that affect results."""
    found = {"python": platform.python_version(), "mergeability": version("mergeability")}
    return found | {name: version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Return the Git commit of the source, with `-dirty` if files were changed; None outside a checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        # The package is installed inside another project's checkout, whose commit does not describe this package.
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
    """Return versions, commit, platform and time as a JSON-compatible record."""
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "platform": f"{platform.system()} {platform.machine()}",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
