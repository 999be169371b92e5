"""A user's own configuration, in `./conf` or `--config-dir`, is found before the package's, by everything that reads it."""

import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from mergeability import UserError, members
from mergeability.commands.cli import cli
from mergeability.commands.invocation import started_as
from mergeability.commands.search_path import forget_own_folders, use_own_folders
from mergeability.commands.sets import derived_sets

MODULE = '''
"""A metric and a merge method of one's own."""

from dataclasses import dataclass

import torch

from mergeability.metrics import metric


@metric(category="weights")
def number_of_models(profiles):
    """Count the models, for every pair."""
    return torch.full((len(profiles.tasks),) * 2, float(len(profiles.tasks)), dtype=torch.float64).numpy()


@dataclass(frozen=True)
class First:
    """Keep the first model."""

    alpha: float = 1.0
    needs_data = False
    models = None

    def __call__(self, task_vectors):
        return {name: stack[0] for name, stack in task_vectors.items()}
'''


@pytest.fixture
def own(tmp_path, monkeypatch, restored_logging):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(MODULE)
    for group, name, text in (
        ("metric", "number_of_models", "# @package metric.number_of_models\n_target_: mine.number_of_models\n_partial_: true\n"),
        ("merge", "first", "# @package merge.first\n# The first model.\n_target_: mine.First\nalpha: 1.0\n"),
    ):  # fmt: skip
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    yield tmp_path
    forget_own_folders()
    started_as(None)
    sys.modules.pop("mine", None)


def run(monkeypatch, *arguments):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return CliRunner().invoke(cli, list(map(str, arguments)), prog_name="mergeability")


def test_own_members_belong_to_every_list_and_set(own, monkeypatch):
    use_own_folders([])
    assert "first" in members.members("merge")
    assert "first" in derived_sets()["merge"]["all"]
    assert "number_of_models" in derived_sets()["metric"]["all"]
    assert "first" in run(monkeypatch, "list", "methods").output
    assert (
        "The first model" in run(monkeypatch, "show", "first").output
        or "Keep the first" in run(monkeypatch, "show", "first").output
    )
    assert "first" in run(monkeypatch, "analyze", "--help").output


def test_an_analysis_takes_own_metrics_and_methods(own, monkeypatch, smoke_root):
    ended = run(
        monkeypatch, "analyze", "suite=smoke", "model=clip_mini", "metric=[number_of_models,stable_rank]", "merge=first",
        "predictor=none", "logger=csv", "test_images=10", f"paths.root={smoke_root}", "hydra.run.dir=here",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    pairs = pd.read_csv(own / "here" / "pairs.csv")
    assert pairs["number_of_models"].unique().tolist() == [4]
    # Of every pair the first model stays, which keeps all of its own accuracy.
    assert pairs["norm_acc_first_a"].round(6).unique().tolist() == [1]


def test_a_file_of_one_s_own_replaces_the_package_s(own, monkeypatch):
    (own / "conf" / "merge" / "ties.yaml").write_text(
        "# @package merge.ties\n_target_: mergeability.merging.Ties\ndensity: 0.123\n"
    )
    assert "density: 0.123" in run(monkeypatch, "analyze", "--cfg", "job", "suite=mini", "merge=ties").output
    use_own_folders([])
    assert members.members("merge")["ties"]["density"] == 0.123


def test_a_given_folder_comes_first(own, monkeypatch):
    other = own / "other" / "merge"
    other.mkdir(parents=True)
    (other / "first.yaml").write_text("# @package merge.first\n_target_: mine.First\nalpha: 0.25\n")
    for flag in (["--config-dir", "other"], ["--config-dir=other"], ["-cd", "other"]):
        shown = run(monkeypatch, "analyze", *flag, "--cfg", "job", "suite=mini", "merge=first").output
        assert "alpha: 0.25" in shown


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(
        UserError, match="Expected --config-dir to be a folder with configuration files, got nowhere"
    ):
        use_own_folders(["--config-dir", "nowhere"])


def test_the_package_s_own_folder_is_not_searched_twice(monkeypatch):
    monkeypatch.chdir(members.folder("").parent)
    use_own_folders([])
    assert members.own_folders() == ()
