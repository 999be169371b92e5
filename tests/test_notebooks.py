"""The notebooks in `examples/` run from top to bottom in an empty folder and show what their text says.

Cells are executed here, in one namespace per notebook, without Jupyter; the commands that they start run in this
process, where everything heavy is imported already.
"""

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mergeability import members
from mergeability.commands.sets import register_sets

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("examples/*.ipynb"))
}


@dataclass(frozen=True)
class Executed:
    """The namespace that a notebook leaves, and what its cells show: the values of their last lines."""

    names: dict[str, Any]
    shown: list[Any]


def cells(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def executed(command, tmp_path, monkeypatch):
    """Execute a notebook in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    started = subprocess.run

    def in_this_process(arguments, **options):
        if arguments[:3] != [sys.executable, "-m", "mergeability"]:
            return started(arguments, **options)  # git, which tells an analysis its commit
        ended = command("mergeability", *arguments[3:])
        return subprocess.CompletedProcess(arguments, ended.code, ended.output, ended.output)

    monkeypatch.setattr(subprocess, "run", in_this_process)

    def execute(name: str) -> Executed:
        names: dict[str, Any] = {"__name__": "__main__"}
        shown = []
        for number, source in enumerate(cells(name)):
            tree = ast.parse(source, f"{name}, code cell {number}")
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"{name}, code cell {number}", "exec"), names)
            if last is not None:
                shown.append(
                    eval(compile(ast.Expression(last.value), f"{name}, code cell {number}", "eval"), names)
                )
        return Executed(names, shown)

    yield execute
    # A module that a notebook wrote is no module of the next one.
    for module in [
        key for key, one in sys.modules.items() if str(tmp_path) in str(getattr(one, "__file__", ""))
    ]:
        del sys.modules[module]
    # Nor is its ./conf searched by the next command.
    members.forget_folders()
    register_sets()


def test_there_are_notebooks():
    assert set(NOTEBOOKS) == {
        "benchmark_in_ten_minutes",
        "own_metric_and_method",
        "read_a_finished_run",
        "two_checkpoints",
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_plain_and_small(name):
    notebook = NOTEBOOKS[name]
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            # Without the magic of IPython, any Python can run it.
            assert not any(
                line.lstrip().startswith(("%", "!")) for line in "".join(cell["source"]).splitlines()
            )


def test_two_checkpoints_are_compared_predicted_and_merged(executed):
    notebook = executed("two_checkpoints")
    table = notebook.names["comparison"].table
    assert len(table) == 1
    # Two changes of equal length that share one of two independent parts: cos = 1/2, the angle 60°.
    assert table["task_vector_cosine_similarity"].item() == pytest.approx(0.5, abs=0.1)
    assert table["weight_space_angle"].item() == pytest.approx(60, abs=7)
    forecasts = notebook.names["prediction"].verdict.forecasts
    assert {one.method for one in forecasts} == {"average", "ties", "tsv"}
    assert all(0 < one.expected < 2 for one in forecasts)
    assert notebook.shown[-1] is True  # at α = 0 a merge is the base
    assert "model.safetensors" in notebook.shown[-2]


def test_a_benchmark_runs_at_smoke_size(executed, smoke_root, tmp_path):
    # The same models, trained once for all tests: the notebook's commands find them finished.
    # Other tests may have trained more of them with the same base.
    models = Path("checkpoints") / "clip_mini"
    for folder in (models / "base", models / "none-0" / "seed-0", Path("store")):
        shutil.copytree(smoke_root / folder, tmp_path / "outputs" / folder)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs").rglob("model.safetensors")}
    notebook = executed("benchmark_in_ten_minutes")
    assert notebook.names["SIZE"] == "smoke"
    names = {path.parent.name for path in trained}
    assert {"base", "digits", "letters", "shapes", "orientation"} <= names
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert (tmp_path / "outputs/benchmark/report.html").is_file()
    outcomes, correlations = notebook.shown[-2:]
    assert len(outcomes) == 6
    assert outcomes["norm_acc_tsv"].between(0, 2).all()
    assert outcomes["norm_acc_tsv"].is_monotonic_decreasing
    assert len(correlations) == 5
    pairs = pd.read_csv(tmp_path / "outputs/benchmark/pairs.csv")
    expected = np.corrcoef(pairs[correlations.index[0]], pairs["norm_acc_tsv"])[0, 1]
    assert correlations.iloc[0] == pytest.approx(expected, abs=0.006)


def test_the_ten_tasks_of_the_benchmark_are_those_of_the_suite():
    (source,) = [one for one in cells("benchmark_in_ten_minutes") if "TASKS =" in one]
    for size in ("smoke", "mini"):
        names: dict[str, Any] = {"SIZE": size}
        exec(source, names)
        suite = (ROOT / f"conf/suite/{size}.yaml").read_text()
        assert names["TASKS"] == [
            line.rsplit(": ", 1)[1] for line in suite.splitlines() if "/task@tasks." in line
        ]
        assert bool(names["FEW_IMAGES"]) == (size == "smoke")


def test_an_own_metric_and_method_work_as_objects_and_as_files(executed, tmp_path):
    notebook = executed("own_metric_and_method")
    # By hand: cars (3, 0, 1), dtd (0, 4, 1), svhn (3, 4, 7).
    lengths = {"cars": 10**0.5, "dtd": 17**0.5, "svhn": 74**0.5}
    apart = {("cars", "dtd"): 5, ("cars", "svhn"): 52**0.5, ("dtd", "svhn"): 45**0.5}
    expected = [between / (lengths[a] + lengths[b]) for (a, b), between in apart.items()]
    np.testing.assert_allclose(notebook.names["table"]["relative_distance"], expected, rtol=1e-5)
    assert notebook.names["median"]["weight"].tolist() == [3, 4, 1]
    found = pd.read_csv(tmp_path / "outputs/own/pairs.csv")
    np.testing.assert_allclose(found["relative_distance"], expected, rtol=1e-5)
    assert notebook.shown[-1] is True
    # The module of the notebook, and not one of the repository.
    assert sys.modules["own"].__file__ == str(tmp_path / "own.py")


def test_a_finished_run_is_read_and_its_predictor_used(executed, tmp_path):
    notebook = executed("read_a_finished_run")
    names = notebook.names
    made = pd.read_csv(tmp_path / "pairs_of_eight_tasks.csv")
    assert len(names["pairs"]) == len(made) == 28
    means = notebook.shown[3].loc["mean"]
    assert means["norm_acc_ties"] == pytest.approx(made["norm_acc_ties"].mean(), abs=0.0006)
    # The outcomes follow from the cosine similarity but for little: whoever uses it is closer than the mean.
    errors = notebook.shown[4]["average"]
    assert errors["loto", "ridge"] < 0.6 * errors["loto", "mean"]
    assert set(names["scores"]["recommended"]) <= {"average", "ties"}
    np.testing.assert_allclose(names["scores"]["score_average"], made["norm_acc_average"].head(3), atol=0.05)
    assert all("task_vector_cosine_similarity" in one for one in notebook.shown[-1]["abstains"])
