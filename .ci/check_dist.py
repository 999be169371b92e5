"""Check wheel and source distribution, in dist/ or another folder: all files of the package, and nothing else.

Needs the standard library alone, so that it also runs where nothing is installed.
"""

import re
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parent.parent


def of_folder(folder: str, inside: str) -> set[str]:
    """Return the names that the files below a folder have in a distribution."""
    files = (
        path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}


def check(archive: str, found: set[str], expected: set[str]) -> list[str]:
    """Compare the names of files; return one sentence per difference."""
    missing = [f"{archive} lacks {name}" for name in sorted(expected - found)]
    return missing + [f"{archive} should not contain {name}" for name in sorted(found - expected)]


def main(folder: Path) -> int:
    """Check both distributions in a folder and return an exit code."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, targets = settings["project"], settings["tool"]["hatch"]["build"]["targets"]
    source_of_version = (ROOT / settings["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.*)"$', source_of_version, re.MULTILINE)[0]
    stem = f"{project['name']}-{version}"
    wheel, source = folder / f"{stem}-py3-none-any.whl", folder / f"{stem}.tar.gz"
    given = sorted(path.name for path in folder.iterdir() if path.name != ".gitignore")
    if given != sorted([wheel.name, source.name]):
        sys.stderr.write(
            f"{folder} holds {given}; expected {wheel.name} and {source.name}. Run `make dist`.\n"
        )
        return 1

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"{stem}.dist-info/METADATA"))
    package = of_folder("mergeability", "mergeability")
    for folder, inside in targets["wheel"].get("force-include", {}).items():
        package |= of_folder(folder, inside)
    faults = check(wheel.name, {name for name in names if ".dist-info/" not in name}, package)
    if f"{stem}.dist-info/licenses/LICENSE" not in names:
        faults.append(f"{wheel.name} lacks the licence")
    if (metadata["Version"], metadata["Requires-Python"]) != (version, project["requires-python"]):
        faults.append(f"{wheel.name} states another version, or other Python versions, than the source")

    with tarfile.open(source) as archive:
        names = {
            name.removeprefix(f"{stem}/")
            for name in archive.getnames()
            if not archive.getmember(name).isdir()
        }
    # The build adds its own settings, the list of ignored files and the metadata.
    expected = {"PKG-INFO", "pyproject.toml", ".gitignore"}
    for item in (item.removeprefix("/") for item in targets["sdist"]["include"]):
        expected |= of_folder(item, item) if (ROOT / item).is_dir() else {item}
    faults += check(source.name, names, expected)

    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
