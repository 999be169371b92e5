"""What is published contains the whole package and nothing else: both distributions are built and checked."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The wheel and the source distribution, from the files that Git would commit."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def checked(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / ".ci/check_dist.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_both_distributions_are_complete(built):
    done = checked(built)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_installed_package_has_its_configuration_and_types(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "mergeability/py.typed",
        "mergeability/__init__.pyi",
        "mergeability/conf/metric/stable_rank.yaml",
    } <= names


def test_a_file_too_few_and_a_file_too_many_are_named(built, tmp_path):
    folder = Path(shutil.copytree(built, tmp_path / "dist"))
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(built / wheel.name) as given, zipfile.ZipFile(wheel, "w") as written:
        for name in given.namelist():
            if name != "mergeability/py.typed":
                written.writestr(name, given.read(name))
        written.writestr("tests/secret.txt", "")
    done = checked(folder)
    assert done.returncode == 1
    assert "lacks mergeability/py.typed" in done.stderr
    assert "should not contain tests/secret.txt" in done.stderr
