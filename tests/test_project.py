"""What the repository promises about itself: pinned dependencies, thin entries, no addresses."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned() -> dict[str, str]:
    """Split the lock into one block a requirement."""
    blocks = re.split(r"\n(?=[a-zA-Z0-9])", LOCK)
    found = {}
    for block in blocks:
        match = re.match(r"([A-Za-z0-9._-]+)==", block)
        if match:
            found[match[1].lower().replace("_", "-")] = block
    return found


def test_every_requirement_is_pinned_with_hashes_and_no_index_is_named():
    assert len(pinned()) > 80
    assert [name for name, block in pinned().items() if "--hash=sha256:" not in block] == []
    assert "://" not in LOCK


def test_every_dependency_and_extra_is_in_the_lock():
    project = PROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= set(pinned())
    assert {"data", "slurm", "ray"} <= set(project["optional-dependencies"])


@pytest.mark.parametrize("script", ["train.py", "analyze.py"])
def test_the_entries_are_thin(script):
    assert len((ROOT / script).read_text().splitlines()) <= 60
