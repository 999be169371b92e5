"""Folders of jobs that lack merges, metrics or seeds: left out, named, or refused in one sentence."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyRegressor

from mergeability.errors import UserError
from mergeability.prediction import Ridge
from mergeability.prediction.questions import evidence_comparison
from mergeability.reporting.ablation.comparison import compare
from mergeability.reporting.ablation.runs import read_runs
from mergeability.reporting.evidence.comparison import summarise

TASKS = list("abcdef")
METRICS = ["task_vector_l2_distance", "subspace_overlap"]


@pytest.fixture
def job(tmp_path):
    """Write what an analysis leaves: the run, its models and its pairs."""

    def write(name, seed=0, images=(8, 2), metrics=METRICS, methods=("ties",)):
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        generator = np.random.default_rng(seed)
        pairs = pd.DataFrame(list(combinations(TASKS, 2)), columns=["task_a", "task_b"])
        for column in (*metrics, *(f"norm_acc_{method}" for method in methods)):
            pairs[column] = generator.uniform(size=len(pairs))
        pairs.to_csv(folder / "pairs.csv", index=False)
        pd.DataFrame({"task": TASKS, "finetuned_accuracy": 0.9}).to_csv(folder / "models.csv", index=False)
        config = {
            "suite": {"name": "mini", "trained": f"none-0/seed-{seed}"},
            "model": {"name": "clip_mini"},
            "seed": seed,
            "reg": {"name": "none", "lambda": 0},
            "merge": {method: {} for method in methods},
            "profile": {"unlabelled": images[0], "samples": images[1]},
            "paths": {"store": str(tmp_path / "store")},
        }
        (folder / "run.json").write_text(json.dumps({"config": config}))
        return folder

    return write


def test_runs_without_merges_are_passed_over(job):
    folders = [job("bare", methods=()), job("merged")]
    assert [run.seed for run in read_runs(folders)] == [0]
    assert read_runs(folders[:1]) == []
    with pytest.raises(UserError, match="None of these runs contains a merge"):
        compare(folders[:1])
    with pytest.raises(UserError, match=r"None of these runs has merged anything.* Set merge="):
        summarise(folders[0].parent, folders[:1])


def test_evidence_without_published_metrics_is_refused(job):
    folder = job("other", metrics=["mine"])
    with pytest.raises(
        UserError, match=r"^other contains none of the published metrics.*metric=\[paper,functional\]"
    ):
        summarise(folder.parent, [folder])


def test_seeds_that_some_numbers_of_images_lack_are_named(job, monkeypatch):
    monkeypatch.setattr(evidence_comparison, "PREDICTORS", {"mean": DummyRegressor(), "ridge": Ridge((0.3,))})
    folders = [job("one", seed=0, images=(8, 2)), job("two", seed=1, images=(16, 3))]
    found = summarise(folders[0].parent, folders)
    (named,) = [one for one in found.missing if "Some seeds are missing" in one]
    assert "seed 1 with 8 unlabelled and 2 calibration images" in named
    assert "seed 0 with 16 unlabelled and 3 calibration images" in named
    assert not any("Only seed" in one for one in found.missing)
    assert "seeds 0, 1" in found.facts[0]
    assert set(zip(found.kinds["unlabelled"], found.kinds["samples"], strict=True)) == {(8, 2), (16, 3)}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON"),
        ("[]", "Expected a JSON object"),
        ("{}", "is not the record of a run"),
        ('{"config": 3}', "is not the record of a run"),
    ],
    ids=lambda text: text[:30],
)
def test_a_damaged_record_of_a_run_is_named(job, written, message):
    folder = job("merged")
    (folder / "run.json").write_text(written)
    with pytest.raises(UserError, match=rf"run\.json.*{message}|{message}.*run\.json"):
        read_runs([folder])
