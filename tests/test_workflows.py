"""The workflows of the repository host: what they call exists, and nothing is published that was not tested.

Schemas are checked by `check-jsonschema`, which is not among the pinned packages; here is what no schema knows.
"""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".github" / "workflows"
# YAML 1.1 reads the key `on` as true.
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
JOBS = {(file, name): job for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()}
STEPS = [(file, name, step) for (file, name), job in JOBS.items() for step in job.get("steps", [])]
COMMANDS = [line for _, _, step in STEPS for line in step.get("run", "").splitlines()]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def made_by(file: str, name: str) -> set[str]:
    """Collect the commands of a job and of every job that it needs, across called workflows."""
    job = WORKFLOWS[file]["jobs"][name]
    lines = {line for step in job.get("steps", []) for line in step.get("run", "").splitlines()}
    if "uses" in job:
        called = Path(job["uses"]).name
        lines |= set().union(*(made_by(called, inner) for inner in WORKFLOWS[called]["jobs"]))
    needs = job.get("needs", [])
    return lines.union(*(made_by(file, other) for other in ([needs] if isinstance(needs, str) else needs)))


def test_there_are_workflows_with_steps():
    assert {"ci.yml", "release.yml"} <= set(WORKFLOWS)
    assert len(STEPS) >= 10


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_step_calls_exists(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert set(arguments) <= TARGETS
    elif program != "test":
        assert os.access(ROOT / program, os.X_OK), "neither make nor a script of the repository"


def test_a_change_must_pass_in_the_workflow_what_it_must_pass_locally():
    gate = re.search(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1].split()
    commands = {line for name in WORKFLOWS["ci.yml"]["jobs"] for line in made_by("ci.yml", name)}
    assert {f"make {target}" for target in gate} <= commands
    assert {"push", "pull_request"} <= set(WORKFLOWS["ci.yml"][True])


@pytest.mark.parametrize(("file", "name", "step"), [one for one in STEPS if "uses" in one[2]])
def test_every_action_is_pinned_to_a_commit(file, name, step):
    assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])
    # The comment tells readers, and the bot that updates it, which version the commit is.
    assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+\n", (FOLDER / file).read_text())


def test_the_tests_run_on_every_python_that_the_package_states():
    tested = WORKFLOWS["ci.yml"]["jobs"]["tests"]["strategy"]["matrix"]["python"]
    oldest = re.fullmatch(r">=(\d+\.\d+)", PROJECT["requires-python"])[1]
    first = int(oldest.removeprefix("3."))
    assert tested == [f"3.{minor}" for minor in range(first, first + len(tested))]
    stated = [
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one)
        for one in PROJECT.get("classifiers", [])
    ]
    versions = [match[1] for match in stated if match]
    # Without classifiers, the oldest version is all that the package states.
    assert sorted(versions or tested, key=lambda one: int(one.removeprefix("3."))) == tested


def test_the_matrix_reaches_the_environment():
    job = WORKFLOWS["ci.yml"]["jobs"]["tests"]
    assert job["env"] == {"PYTHON_VERSION": "${{ matrix.python }}"}
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"venv .*--python '\$\(PYTHON_VERSION\)' \.venv", makefile)
    assert re.search(r"^PYTHON_VERSION \?= (.*)$", makefile, re.MULTILINE)[1] == PROJECT["requires-python"]


@pytest.mark.parametrize("file", WORKFLOWS)
def test_a_workflow_may_only_read_unless_a_job_says_otherwise(file):
    workflow = WORKFLOWS[file]
    assert workflow["permissions"] == {"contents": "read"}
    written = {
        (name, scope)
        for name, job in workflow["jobs"].items()
        for scope, level in job.get("permissions", {}).items()
        if level == "write"
    }
    assert written == ({("publish", "id-token")} if file == "release.yml" else set())
    assert "secrets." not in (FOLDER / file).read_text()


@pytest.mark.parametrize("file", WORKFLOWS)
def test_a_workflow_has_a_group_and_its_jobs_end(file):
    assert "github.ref" in WORKFLOWS[file]["concurrency"]["group"]
    for job in WORKFLOWS[file]["jobs"].values():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 60


def test_a_checkout_leaves_no_token_behind():
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) >= 4
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_only_a_tag_publishes_and_only_after_all_checks():
    assert WORKFLOWS["release.yml"][True] == {"push": {"tags": ["v*"]}}
    publishing = [(file, name) for file, name, step in STEPS if "pypi-publish" in step.get("uses", "")]
    assert publishing == [("release.yml", "publish")]
    commands = made_by("release.yml", "publish")
    assert {"make check", "make test", "make docs", "make dist", ".ci/smoke"} <= commands
    # A job that runs although what it needs has failed would publish all the same.
    assert "if" not in JOBS["release.yml", "publish"]


def test_what_is_published_is_what_was_built_and_bears_the_tag():
    steps = WORKFLOWS["release.yml"]["jobs"]["publish"]["steps"]
    stored = [
        step["with"] for _, job, step in STEPS if job == "build" and "upload-artifact" in step.get("uses", "")
    ]
    fetched = [step["with"] for step in steps if "download-artifact" in step.get("uses", "")]
    assert [one["name"] for one in stored] == [one["name"] for one in fetched] == ["dist"]
    assert [step["run"] for step in steps if "run" in step] == [
        f'test -f "dist/{PROJECT["name"]}-${{GITHUB_REF_NAME#v}}-py3-none-any.whl"'
    ]
