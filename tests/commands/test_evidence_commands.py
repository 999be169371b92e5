"""One command compares the evidence of several jobs: seeds and numbers of images, from the jobs' own tables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.reporting.evidence.comparison import summarise

FOLDER = "evidence/smoke-clip_mini"
FEW = (
    "experiment=evidence", "suite=smoke", "model=clip_mini", "metric=[functional,task_vector_l2_distance,activation_l2_distance]",
    "merge=[average,ta]", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(smoke_root, tmp_path_factory) -> Path:
    """Four models of seed 0, in a place whose store nothing else uses."""
    place = tmp_path_factory.mktemp("evidence")
    shutil.copytree(smoke_root / "checkpoints", place / "checkpoints")
    return place


@pytest.fixture(scope="module")
def compared(root, command):
    return command("analyze", *FEW, f"paths.root={root}", "seed=0", "images=[8,2],[16,3]")


def test_two_numbers_of_images_are_compared(root, compared):
    assert compared.code == 0, compared.output
    assert "Summary of the sweep" in compared.output
    folders = {str(path.parent.relative_to(root / FOLDER)) for path in (root / FOLDER).rglob("pairs.csv")}
    assert folders == {"seed-0/unlabelled-8-samples-2", "seed-0/unlabelled-16-samples-3"}
    kinds = pd.read_csv(root / FOLDER / "evidence.csv")
    assert set(kinds["unlabelled"]) == {8, 16}
    assert set(kinds["group"]) == {"old"}
    new = kinds[(kinds["situation"] == "both new") & (kinds["target"] == "norm_acc")]
    assert set(new["predictor"]) == {"mean", "ridge", "activation", "known", "functional", "probe"}
    assert {"additive", "additive_probe"} <= set(
        kinds.loc[kinds["situation"] == "known partner", "predictor"]
    )
    # The direct reading of the probe, by hand from a job's own table.
    pairs = pd.read_csv(root / FOLDER / "seed-0/unlabelled-16-samples-3/pairs.csv")
    off = np.array([pairs[f"probe_overlap_{name}"] - pairs[f"norm_acc_{name}"] for name in ("average", "ta")])
    row = new[(new["predictor"] == "probe") & (new["unlabelled"] == 16)].iloc[0]
    assert row["bias"] == pytest.approx(off.mean())
    assert row["mae"] == pytest.approx(np.abs(off).mean())
    images = pd.read_csv(root / FOLDER / "evidence_images.csv")
    assert set(images.loc[images["kind"] == "unlabelled", "images"]) == {8, 16}
    assert set(images.loc[images["kind"] == "samples", "images"]) == {2, 3}


def test_the_page_names_what_is_missing(root, compared):
    assert compared.code == 0
    page = (root / FOLDER / "evidence.html").read_text()
    assert "Only seed 0 was analysed, so there are no intervals over seeds." in page
    assert "Group new is left out: 0 of its tasks are in the table, and 4 are needed." in page


def test_merges_are_shared_and_a_second_run_computes_nothing(root, compared, command):
    assert compared.code == 0
    second = json.loads((root / FOLDER / "seed-0/unlabelled-16-samples-3/run.json").read_text())
    assert not {"accuracy", "merge"} & set(second["computed"])
    before = (root / FOLDER / "evidence.csv").read_bytes()
    ended = command("analyze", *FEW, f"paths.root={root}", "seed=0", "images=[8,2],[16,3]")
    assert ended.code == 0, ended.output
    again = json.loads((root / FOLDER / "seed-0/unlabelled-16-samples-3/run.json").read_text())
    assert not again["computed"]
    assert (root / FOLDER / "evidence.csv").read_bytes() == before


def test_a_seed_without_models_is_named_and_the_others_are_compared(root, compared, command):
    assert compared.code == 0
    ended = command(
        "analyze", *FEW, f"paths.root={root}", "seed=0,1", "images=[8,2]", "hydra.sweep.dir=${paths.root}/two"
    )
    assert ended.code == 1
    assert "1 of 2 jobs failed" in ended.output
    assert "seed=1" in ended.output
    assert "Traceback" not in ended.output
    assert set(pd.read_csv(root / "two/evidence.csv")["seeds"]) == {1}
    assert (
        "These jobs did not finish: seed-1/unlabelled-8-samples-2."
        in (root / "two/evidence.html").read_text()
    )


def test_earlier_jobs_that_cannot_be_compared_are_named(root, compared, command):
    assert compared.code == 0
    ended = command(
        "analyze", *FEW, f"paths.root={root}", "seed=0", "images=[8,2]", "alpha=0.5", "hydra.sweep.dir=${paths.root}/other",
        "hydra.callbacks.ledger.beside=${paths.root}/" + FOLDER,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert (
        "Earlier analyses with other settings, alpha (null, here 0.5), are left out: 2."
        in (root / "other/evidence.html").read_text()
    )
    assert set(pd.read_csv(root / "other/evidence.csv")["unlabelled"]) == {8}
    folders = [root / FOLDER / "seed-0/unlabelled-8-samples-2", root / "other/seed-0/unlabelled-8-samples-2"]
    with pytest.raises(UserError, match=r"differ in alpha \(null and 0.5\)\.$"):
        summarise(root, folders)
