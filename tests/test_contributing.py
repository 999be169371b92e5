"""The examples of CONTRIBUTING.md work as written: each adds one or two files and the contract tests accept it."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# Kind -> the group of its YAML file, and the contract tests that look at a new member of that group.
KINDS = {
    "A metric": ("metric", ["tests/metrics/test_metric_contract.py"]),
    "A merge method": ("merge", ["tests/merging/test_merge_contract.py"]),
    "A penalty": ("reg", ["tests/finetuning/test_penalty_contract.py", "tests/finetuning/test_penalties.py"]),
    "A predictor": ("predictor", ["tests/prediction/predictors/test_leaks.py"]),
    "A task": ("task", []),
    "A model": ("model", []),
}
CONFIGS = "tests/commands/test_configs.py"
CATALOGUE = "tests/commands/test_catalogue.py"
PUBLISHED = json.loads((ROOT / "tests/published/members_0.1.0.json").read_text())["sets"]
# The fewest tests of its contract that a member of each kind has to pass, besides those of its configuration.
FEWEST = {"metric": 4, "merge": 15, "reg": 4, "predictor": 2, "task": 0, "model": 0}
# Tests of whole groups that a new member must leave green.
OF_SETS = ("lost", "belongs", "published_order", "catalogue")


def examples(kind: str) -> dict[str, str]:
    """Read the files of one section: path -> content."""
    section = re.split(r"^##+ ", TEXT.split(f"### {kind}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == section.count("```") // 2, "every block begins with its path"
    return dict(blocks)


def member(kind: str) -> str:
    (name,) = (Path(path).stem for path in examples(kind) if path.endswith(".yaml"))
    return name


def environment(copy: Path) -> dict[str, str]:
    """The installed package must not stand in for the copy."""
    return {**os.environ, "PYTHONPATH": str(copy)}


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which all the examples have been performed.

    With what Python has compiled of it, which it checks by the time and size of each file: that saves three seconds.
    """
    folder = tmp_path_factory.mktemp("copy") / "repository"
    for name in ("mergeability", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("results"))
    for name in ("pyproject.toml", "train.py", "analyze.py", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder / name)
    before = content(folder)
    for kind in KINDS:
        for path, text in examples(kind).items():
            assert path not in before, f"{kind} may add files and change none"
            (folder / path).write_text(text)
    after = content(folder)
    assert {name: after[name] for name in before} == before
    return folder


@pytest.fixture(scope="module")
def outcomes(copy):
    """Whether each of the selected tests passed in the copy, by its full name."""
    # The contracts, and the examples in the docstrings of the new files.
    files = [file for _, own in KINDS.values() for file in own]
    files += [path for kind in KINDS for path in examples(kind) if path.endswith(".py")]
    selected = " or ".join([member(kind) for kind in KINDS] + list(OF_SETS))
    report = copy.parent / "report.xml"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"),
            *("-k", selected, CONFIGS, CATALOGUE, *files),
        ],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert ended.returncode in (0, 1), ended.stdout[-3000:] + ended.stderr[-3000:]
    cases = ElementTree.parse(report).iter("testcase")
    return {
        f"{case.get('classname')}::{case.get('name')}": case.find("failure") is None
        and case.find("error") is None
        and case.find("skipped") is None
        for case in cases
    }


def test_the_examples_are_one_of_each_kind():
    assert re.findall(r"^### (.*)$", TEXT, re.MULTILINE) == list(KINDS)
    for kind, (group, _) in KINDS.items():
        assert len(examples(kind)) in (1, 2)
        assert f"conf/{group}/{member(kind)}.yaml" in examples(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_passes_the_contract_of_its_kind(outcomes, kind):
    group, files = KINDS[kind]
    seen = {name: passed for name, passed in outcomes.items() if member(kind) in name}
    assert [name for name, passed in seen.items() if not passed] == []
    # It composes and can be instantiated, and its kind's contract was really asked.
    of_configs = [name for name in seen if "test_configs" in name]
    assert any("resolve" in name for name in of_configs)
    assert len(of_configs) >= 2
    # So was the catalogue: a summary, a source and what else a page of the reference has.
    of_catalogue = [name for name in seen if "test_catalogue" in name]
    assert any("documented" in name for name in of_catalogue)
    assert len(seen) - len(of_configs) - len(of_catalogue) >= FEWEST[group], sorted(seen)
    assert all(any(f"{Path(file).stem}::" in name for name in seen) for file in files)
    # So was the example in its docstring.
    modules = [Path(path).stem for path in examples(kind) if path.endswith(".py")]
    assert all(any(f"{module}::" in name for name in seen) for module in modules)


def test_the_sets_take_the_examples_in(outcomes):
    of_sets = {name: passed for name, passed in outcomes.items() if any(word in name for word in OF_SETS)}
    assert len(of_sets) > 8
    assert [name for name, passed in of_sets.items() if not passed] == []


def test_the_sets_of_the_copy_hold_the_new_members(copy):
    code = (
        "import json, sys; from mergeability.commands.sets import derived_sets; "
        "assert 'torch' not in sys.modules; print(json.dumps(derived_sets()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    sets = json.loads(ended.stdout)
    assert sets["merge"]["all"][-1] == sets["merge"]["data_free"][-1] == "median"
    assert sets["metric"]["all"][-1] == sets["metric"]["weights"][-1] == "relative_distance"
    # Later members follow the published ones, by name.
    later = sets["predictor"]["all"][len(PUBLISHED["predictor"]["all"]) :]
    assert "bayesian_ridge" in later
    assert later == sorted(later)
