"""The comparison of architectures from run folders: what is read, checked, named, written and found again."""

import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mergeability.errors import UserError
from mergeability.metrics.catalogue import PAPER
from mergeability.prediction.architectures import cells, transfer
from mergeability.prediction.architectures.claims import CLAIMS
from mergeability.reporting.architectures.jobs import read_jobs
from mergeability.reporting.architectures.page import _trainings
from mergeability.reporting.architectures.summary import write_summary

TASKS = list("abcdef")
METRICS = ["task_vector_l2_distance", "subspace_overlap", "encoder_gradient_cosine_similarity"]
TABLES = [
    "claims", "outcomes", "fingerprints", "signs", "metrics", "prerequisites", "variance", "repeated", "transfer",
    "penalties", "sets",
]  # fmt: skip


def _job(
    root: Path, model="clip_mini", seed=0, suite="mini", tasks=TASKS, penalty="none", strength=0, **settings
) -> Path:
    """Write what an analysis leaves that the comparison reads."""
    trained = f"{penalty}-{strength:g}/seed-{seed}"
    folder = root / "sweep" / f"{suite}-{model}" / trained
    (folder / ".hydra").mkdir(parents=True)
    fixed = np.random.default_rng(7)
    pairs = pd.DataFrame(list(combinations(tasks, 2)), columns=["task_a", "task_b"])
    for name in METRICS:
        pairs[name] = fixed.normal(size=len(pairs))
    changes = np.random.default_rng([seed, len(model)])
    for method in ("ties", "tsv"):
        outcome = 0.7 + 0.05 * pairs[METRICS[0]] + 0.01 * changes.normal(size=len(pairs)) + 0.02 * strength
        pairs[f"acc_{method}"], pairs[f"norm_acc_{method}"] = outcome - 0.1, outcome
        pairs[f"probe_overlap_{method}"] = outcome + 0.01
    pairs.to_csv(folder / "pairs.csv", index=False)
    pd.DataFrame({"task": tasks, "finetuned_accuracy": 0.9}).to_csv(folder / "models.csv", index=False)
    config = {
        "suite": {"name": suite, "trained": trained},
        "model": {"name": model},
        "seed": seed,
        "reg": {"name": penalty, "lambda": strength},
        "merge": {"ties": {"density": 0.2}},
        "profile": {"samples": 10, "matricize": "conv" if "resnet" in model else None},
        # One for all tests, since the same tables would be predicted from each other again in each of them.
        "paths": {"store": str(root.parent / "architectures_store")},
        **settings,
    }
    (folder / "run.json").write_text(json.dumps({"config": config}))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [_job(tmp_path, model, seed) for model in ("clip_mini", "clip_mini_resnet") for seed in (0, 1)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two architectures with two seeds, and the folder of their comparison."""
    root = tmp_path_factory.mktemp("comparison")
    folders = [_job(root, model, seed) for model in ("clip_mini", "clip_mini_resnet") for seed in (0, 1)]
    return folders, write_summary(root / "sweep", folders).parent


def test_tables_and_page_are_written(written):
    path = written[1] / "architectures.html"
    tables = {name: pd.read_csv(written[1] / f"architectures_{name}.csv") for name in TABLES}
    assert tables["claims"]["claim"].tolist() == [claim.text for claim in CLAIMS]
    assert set(tables["transfer"]["models"]) == {"the same models", "another seed", "another architecture"}
    assert set(tables["variance"]["architecture"]) == {"clip_mini", "clip_mini_resnet"}
    assert len(tables["variance"]) == 8
    assert tables["penalties"].empty
    assert tables["sets"].empty
    page = path.read_text()
    for claim in CLAIMS:
        assert claim.text in page
    assert (
        "clip_mini (6 tasks, 15 pairs), clip_mini_resnet (6 tasks, 15 pairs); seeds 0, 1; 4 analyses" in page
    )
    assert "<script src" not in page, "it needs no network"
    assert "Only seed" not in page


def test_figures_are_on_the_page(written):
    page = (written[1] / "architectures.html").read_text()
    for anchor in ("fingerprints", "signs", "variance", "transfer"):
        assert f'id="{anchor}"' in page


def test_one_architecture_with_one_seed_says_what_cannot_be_known(tmp_path, folders):
    page = write_summary(tmp_path / "sweep", folders[:1]).read_text()
    assert "Only seed 0 was analysed. The agreement between seeds is therefore unknown" in page
    assert (
        "Only the architecture clip_mini was analysed, so nothing is known about other architectures." in page
    )


def test_missing_jobs_are_named_and_counted(tmp_path, folders):
    (folders[3] / "run.json").unlink()
    jobs = read_jobs(tmp_path / "sweep", folders[:3])
    named = " ".join(jobs.missing)
    assert "1 of 4 jobs did not finish: mini-clip_mini_resnet/none-0/seed-1." in named
    assert "Some seeds are missing: there is no analysis of clip_mini_resnet of seed 1." in named
    assert "clip_mini_resnet" in write_summary(tmp_path / "sweep", folders[:3]).read_text()


def test_nothing_is_computed_twice(written, monkeypatch):
    folders, sweep = written
    before = {name: (sweep / f"architectures_{name}.csv").read_bytes() for name in TABLES}

    def refuse(*_, **__):
        raise AssertionError("computed again")

    for module in (cells, transfer):
        monkeypatch.setattr(module, "evaluate_predictors", refuse)
    write_summary(sweep, folders)
    assert before == {name: (sweep / f"architectures_{name}.csv").read_bytes() for name in TABLES}


def test_trainings_with_a_penalty_are_compared_with_plain_ones_and_kept_out_of_the_rest(tmp_path, folders):
    penalised = [_job(tmp_path, seed=seed, penalty="mergeability", strength=0.5) for seed in (0, 1)]
    write_summary(tmp_path / "sweep", [*folders, *penalised])
    table = pd.read_csv(tmp_path / "sweep" / "architectures_penalties.csv").iloc[0]
    assert table[["architecture", "penalty", "strength", "seeds"]].tolist() == [
        "clip_mini",
        "mergeability",
        0.5,
        2,
    ]
    assert table["acc"] == pytest.approx(0.01)
    assert len(pd.read_csv(tmp_path / "sweep" / "architectures_variance.csv")) == 8
    with pytest.raises(UserError, match=r"needs plain fine-tuning\. Add a run with reg=none"):
        read_jobs(tmp_path / "sweep", penalised)


def test_merges_of_more_models_are_read(tmp_path, folders):
    triples = list(combinations(TASKS, 3))
    sets = pd.DataFrame({"tasks": ["+".join(one) for one in triples], "arity": 3})
    sets["norm_acc_ties"] = np.random.default_rng(0).uniform(size=len(sets))
    sets.to_csv(folders[0] / "sets.csv", index=False)
    page = write_summary(tmp_path / "sweep", folders).read_text()
    assert "Sets are left out if some of their pairs were not merged" not in page
    table = pd.read_csv(tmp_path / "sweep" / "architectures_sets.csv")
    assert table[["architecture", "method", "arity", "n_sets"]].to_numpy().tolist() == [
        ["clip_mini", "ties", 3, 20],
        ["clip_mini", "all", 3, 20],
    ]


def test_a_suite_of_other_tasks_is_an_architecture_like_any_other(tmp_path, folders):
    text = _job(tmp_path, "minilm", suite="text8", tasks=[f"text_{name}" for name in "abcde"])
    jobs = read_jobs(tmp_path / "sweep", [*folders, text])
    assert [one.architecture for one in jobs.plain][-1] == "minilm"
    write_summary(tmp_path / "sweep", [*folders, text])
    table = pd.read_csv(tmp_path / "sweep" / "architectures_transfer.csv")
    own = table[(table["fitted_on"] == "clip_mini") & (table["predicts"] == "minilm")]
    assert {"ridge", "probe"} <= set(own["predictor"])
    assert set(own["n_pairs"]) == {10}


def test_two_suites_of_one_model_are_told_apart(tmp_path, folders):
    other = _job(tmp_path, suite="mini20", tasks=[*TASKS, "g"])
    jobs = read_jobs(tmp_path / "sweep", [*folders, other])
    assert [one.architecture for one in jobs.plain] == [
        "clip_mini on mini", "clip_mini on mini", "clip_mini_resnet", "clip_mini_resnet", "clip_mini on mini20",
    ]  # fmt: skip


def test_a_metric_that_one_architecture_lacks_is_named(tmp_path, folders):
    pairs = pd.read_csv(folders[3] / "pairs.csv")
    pairs.loc[2, "subspace_overlap"] = np.nan
    pairs.to_csv(folders[3] / "pairs.csv", index=False)
    jobs = read_jobs(tmp_path / "sweep", folders)
    assert jobs.metrics == (METRICS[0], METRICS[2])
    named = next(one for one in jobs.missing if "clip_mini_resnet lacks them" in one)
    assert "These metrics are left out for all architectures" in named


def test_only_what_an_architecture_lacks_is_named(tmp_path, folders):
    for folder in folders[:2]:
        pairs = pd.read_csv(folder / "pairs.csv")
        others = [name for name in PAPER if name not in pairs]
        more = pd.DataFrame(np.random.default_rng(1).normal(size=(len(pairs), len(others))), columns=others)
        pd.concat([pairs, more], axis=1).to_csv(folder / "pairs.csv", index=False)
    jobs = read_jobs(tmp_path / "sweep", folders)
    assert set(jobs.metrics) == set(METRICS)
    (named,) = [one for one in jobs.missing if "These metrics are left out for all architectures" in one]
    assert "clip_mini_resnet lacks them" in named


def test_jobs_with_other_settings_are_refused_and_earlier_ones_left_out(tmp_path, folders):
    other = _job(tmp_path, "clip_mini_wide", alpha=0.5)
    with pytest.raises(UserError, match=r"differ in alpha\.$"):
        read_jobs(tmp_path / "sweep", [*folders, other])
    jobs = read_jobs(tmp_path / "sweep", folders, [other])
    assert "Earlier analyses with other settings (alpha) are left out: 1." in jobs.missing
    assert "clip_mini_wide" not in {one.architecture for one in jobs.plain}


def test_the_later_of_two_analyses_counts(tmp_path, folders):
    jobs = read_jobs(tmp_path / "sweep", folders[:2], [folders[0], folders[2]])
    assert [(one.architecture, one.seed) for one in jobs.plain].count(("clip_mini", 0)) == 1
    assert len(jobs.plain) == 3


def test_seeds_with_other_tasks_are_refused(tmp_path, folders):
    other = _job(tmp_path, seed=2, tasks=TASKS[:5])
    with pytest.raises(UserError, match="must have the same tasks"):
        read_jobs(tmp_path / "sweep", [*folders, other])


def test_folders_without_merges_or_metrics_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="None of these runs has merged anything"):
        read_jobs(tmp_path / "sweep", [tmp_path])
    for folder in folders:
        pairs = pd.read_csv(folder / "pairs.csv").drop(columns=METRICS)
        pairs.to_csv(folder / "pairs.csv", index=False)
    with pytest.raises(UserError, match="None of the published metrics is in every table"):
        read_jobs(tmp_path / "sweep", folders)


@pytest.mark.parametrize("left_out", [0, 4])
def test_sets_whose_pairs_were_not_merged_are_explained(left_out):
    sets = pd.DataFrame(
        [{"architecture": "clip_mini", "method": "ties", "arity": 3, "rho": 0.5, "rho_low": 0.1, "rho_high": 0.8,
          "n_sets": 16, "left_out": left_out, "seeds": 2}]
    )  # fmt: skip
    (section,) = _trainings(SimpleNamespace(penalties=pd.DataFrame(), sets=sets))
    assert section.heading == "Do pairs predict merges of more than two models?"
    assert ("Sets are left out if some of their pairs were not merged" in section.body) == (left_out > 0)
