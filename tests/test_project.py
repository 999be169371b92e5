"""What the repository promises about itself: pinned dependencies, thin entries, no addresses."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
LOCK_OF_ALL = (ROOT / "requirements-all.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(lock: str) -> dict[str, str]:
    """Split a lock into one block a requirement."""
    blocks = re.split(r"\n(?=[a-zA-Z0-9])", lock)
    found = {}
    for block in blocks:
        match = re.match(r"([A-Za-z0-9._-]+)==", block)
        if match:
            found[match[1].lower().replace("_", "-")] = block
    return found


@pytest.mark.parametrize("lock", [LOCK, LOCK_OF_ALL])
def test_every_requirement_is_pinned_with_hashes_and_no_index_is_named(lock):
    assert len(pinned(lock)) > 80
    assert [name for name, block in pinned(lock).items() if "--hash=sha256:" not in block] == []
    assert "://" not in lock


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", one)[0].lower().replace("_", "-") for one in requirements}


def test_every_dependency_and_extra_is_in_a_lock():
    project, extras = PROJECT["project"], PROJECT["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text()
    default = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)[1].split()
    assert names(project["dependencies"]) <= set(pinned(LOCK))
    for extra in default:
        assert names(extras[extra]) <= set(pinned(LOCK)), extra
    everything = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    everything += PROJECT["dependency-groups"]["witnesses"]
    # The extra `all` names this project's own extras.
    everything = [one for one in everything if not one.startswith("mergeability[")]
    assert names(everything) <= set(pinned(LOCK_OF_ALL))
    assert {"data", "slurm", "ray", "joblib", "mlflow", "tensorboard", "dashboards"} <= set(extras)


def test_the_lock_of_everything_has_the_versions_of_the_default_one():
    def versions(lock: str) -> dict[str, str]:
        return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock, re.MULTILINE))

    both = versions(LOCK_OF_ALL)
    assert {name: version for name, version in versions(LOCK).items() if both.get(name) != version} == {}


def test_what_the_demo_does_not_need_is_not_installed_for_it():
    assert not {"ray", "mlflow-skinny", "tensorboard", "wandb-workspaces", "peft"} & set(pinned(LOCK))


@pytest.mark.parametrize("script", ["train.py", "analyze.py"])
def test_the_entries_are_thin(script):
    assert len((ROOT / script).read_text().splitlines()) <= 60


def test_modules_and_classes_are_short_and_few_are_outside_packages():
    package = ROOT / "mergeability"
    lengths = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert len(lengths) > 200
    assert [path for path, length in lengths.items() if length > 400] == []
    classes = {
        f"{path.name}: {one.name}": (one.end_lineno or 0) - one.lineno + 1
        for path, length in lengths.items()
        if length > 250
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.ClassDef)
    }
    assert {name: length for name, length in classes.items() if length > 250} == {}
    assert len({path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}) <= 10


def test_the_extra_all_is_every_extra_for_users():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == set(extras) - {"all", "dev", "docs"}


def test_the_version_is_written_once():
    import mergeability

    assert "version" in PROJECT["project"]["dynamic"]
    assert (
        re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
        == mergeability.__version__
    )
