"""One command compares the architectures of several jobs, and names the jobs that are missing."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

FEW = (
    "experiment=architectures", "architecture=clip_mini", "suite=smoke", "merge=[average,ta]", "device=cpu",
    "metric=[functional,task_vector_l2_distance,activation_l2_distance]", "profile.unlabelled=8", "profile.samples=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(smoke_root, tmp_path_factory) -> Path:
    """Four models of seed 0, in a place whose store nothing else uses."""
    place = tmp_path_factory.mktemp("architectures")
    shutil.copytree(smoke_root / "checkpoints", place / "checkpoints")
    return place


def test_a_seed_without_models_is_named_and_the_other_is_compared(root, command):
    ended = command("analyze", *FEW, f"paths.root={root}", "seed=0,1")
    assert ended.code == 1
    assert "1 of 2 jobs failed" in ended.output
    assert "Traceback" not in ended.output
    folder = root / "architectures"
    assert (folder / "smoke-clip_mini/none-0/seed-0/pairs.csv").is_file()
    page = (folder / "architectures.html").read_text()
    assert "1 of 2 jobs did not finish: smoke-clip_mini/none-0/seed-1." in page
    assert (
        "Only the architecture clip_mini was analysed, so nothing is known about other architectures." in page
    )
    claims = pd.read_csv(folder / "architectures_claims.csv")
    assert set(claims["verdict"]) <= {"confirmed", "refuted", "undecided"}
    transfer = pd.read_csv(folder / "architectures_transfer.csv")
    assert {"ridge", "known", "functional", "probe"} <= set(transfer["predictor"])


def test_the_whole_metric_set_is_the_experiment_s_own(command):
    ended = command("analyze", "experiment=architectures", "architecture=nothing")
    assert ended.code != 0
    assert "clip_mini_resnet" in ended.output, "the choices are named"
