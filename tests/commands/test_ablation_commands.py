"""One command that fine-tunes what is missing, and one that compares settings of fine-tuning; what a user types."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hydra.errors import MissingConfigException

from mergeability.commands.wording import sentence

SIZES = ("task.source.train=128", "task.source.validation=32", "task.source.test=64", "training.epochs=1")
ABLATION = "regularisation/smoke-clip_mini"
SEARCH = "regularisation_sweep/smoke-clip_mini"
FEW = ("merge=average", "metric=[task_vector_l2_distance]", "predictor=none", "device=cpu")
# One pair, so that two models are trained for each setting and seed, and not four.
PAIR = "pairs=[[digits,letters]]"


@pytest.fixture(scope="module")
def root(smoke_root, tmp_path_factory) -> Path:
    """A place with a base model and nothing fine-tuned."""
    place = tmp_path_factory.mktemp("ablation")
    target = place / "checkpoints" / "clip_mini" / "base"
    target.parent.mkdir(parents=True)
    target.symlink_to(smoke_root / "checkpoints" / "clip_mini" / "base")
    return place


@pytest.fixture(scope="module")
def ablated(root, command):
    return command(
        "analyze", "experiment=regularisation", "suite=smoke", f"paths.root={root}", "seed=0,1", "reg=l2_to_init",
        "reg.lambda=0,0.1", PAIR, *FEW,
    )  # fmt: skip


def models(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("card.json")}


def test_one_command_trains_merges_and_compares(root, ablated):
    assert ablated.code == 0, ablated.output
    folders = {path.parent.relative_to(root / ABLATION) for path in root.rglob("run.json")}
    settings = {f"{setting}/seed-{seed}" for setting in ("none-0", "l2_to_init-0.1") for seed in (0, 1)}
    assert {str(folder) for folder in folders} == settings, "one folder a setting and seed, λ = 0 once"
    table = pd.read_csv(root / ABLATION / "ablation_merges.csv")
    assert set(table["setting"]) == {"none-0", "l2_to_init-0.1"}
    assert (table["seeds"] == 2).all()
    # By hand from the jobs' own tables.
    change = []
    for seed in (0, 1):
        own, plain = (
            pd.read_csv(root / ABLATION / f"{setting}/seed-{seed}/pairs.csv")["acc_average"].mean()
            for setting in ("l2_to_init-0.1", "none-0")
        )
        change.append(own - plain)
    row = table[
        (table["setting"] == "l2_to_init-0.1") & (table["method"] == "average") & (table["target"] == "acc")
    ]
    assert row["change"].item() == pytest.approx(sum(change) / 2)
    assert "Summary of the sweep" in ablated.output
    assert "3 of 4 jobs ended; about 0 h 0" in ablated.output


def test_a_penalty_leaves_its_mark(root, ablated):
    """Pulled to the base model in the middle of the default grid, models stay nearer to it."""
    assert ablated.code == 0
    distances = pd.read_csv(root / ABLATION / "ablation_metrics.csv").set_index("setting")
    assert (distances["metric"] == "task_vector_l2_distance").all()
    assert distances.loc["l2_to_init-0.1", "value"] < distances.loc["l2_to_init-0.1", "plain"]


def test_what_train_makes_and_what_an_analysis_makes_are_one_model(root, ablated, command):
    assert ablated.code == 0
    before = models(root)
    ended = command(
        "train", "task=digits", "model=clip_mini", "reg=l2_to_init", "reg.lambda=0.1", "seed=1", *SIZES,
        f"paths.root={root}", "logger=csv", "progress=null",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert "Already finished" in ended.output
    assert models(root) == before


def test_a_second_run_trains_nothing_and_says_the_same(root, ablated, command):
    assert ablated.code == 0
    before, table = models(root), (root / ABLATION / "ablation_merges.csv").read_bytes()
    ended = command(
        "analyze", "experiment=regularisation", "suite=smoke", f"paths.root={root}", "seed=1", "reg=l2_to_init",
        "reg.lambda=0.1", PAIR, *FEW, "hydra.callbacks.ledger.beside=${paths.root}/" + ABLATION,
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert models(root) == before
    assert "test accuracy" not in ended.output
    assert (root / ABLATION / "ablation_merges.csv").read_bytes() == table, "the other jobs from beside"


def test_only_models_of_the_chosen_pairs_are_trained(root, ablated, command, tmp_path):
    assert ablated.code == 0
    ended = command(
        "analyze", "suite=smoke", f"paths.root={root}", "reg=subspace", "reg.lambda=0.5", "train.missing=true",
        "pairs=[[shapes,digits]]", 'train.settings=["progress=null"]', *FEW, "logger=csv", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    trained = {
        path.parent.name for path in (root / "checkpoints/clip_mini/subspace-0.5/seed-0").glob("*/card.json")
    }
    assert trained == {"shapes", "digits"}
    assert (tmp_path / "csv/digits/metrics.csv").is_file()
    assert (tmp_path / "csv/shapes/metrics.csv").is_file(), "each training has a log of its own"


def test_settings_of_training_are_passed_on_and_a_changed_one_is_refused(root, ablated, command, tmp_path):
    assert ablated.code == 0
    ended = command(
        "analyze", "suite=smoke", f"paths.root={root}", "reg=l2_to_init", "reg.lambda=0.1", "train.missing=true", PAIR,
        'train.settings=["training.learning_rate=0.5","progress=null"]', *FEW, "logger=csv", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert ended.code == 1
    assert "training.learning_rate (there 0.001, now 0.5)" in ended.output
    assert "Traceback" not in ended.output


def test_a_failed_setting_is_named_and_the_others_are_compared(root, ablated, command):
    ended = command(
        "analyze", "experiment=regularisation", "suite=smoke", f"paths.root={root}", "seed=0", "reg=l2_to_init,subspace",
        "reg.lambda=0,-1", PAIR, *FEW, "hydra.sweep.dir=${paths.root}/failing",
    )  # fmt: skip
    assert ended.code == 1
    assert "2 of 4 jobs failed" in ended.output
    assert "Expected reg.lambda to be a finite number of at least 0, got -1." in ended.output
    assert set(pd.read_csv(root / "failing/ablation_merges.csv")["setting"]) == {"none-0"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.missing=true", "suite=checkpoints"], "train.missing=true trains on the tasks of a suite, but suite=checkpoints contains no tasks"),
        (["objectives=[speed]"], "Expected objectives among norm_acc, acc, finetuned_accuracy, got 'speed'"),
        (["objectives=[acc]", "merge=none"], "This analysis did not measure acc"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(smoke_root, command, tmp_path, words, sentence):
    bare = (
        ["suite.base=base.safetensors", "suite.models={a: a.safetensors}"]
        if "suite=checkpoints" in words
        else []
    )
    suite = [] if bare else ["suite=smoke"]
    ended = command(
        "analyze",
        *suite,
        *FEW,
        *words,
        *bare,
        f"paths.root={smoke_root}",
        "logger=csv",
        f"hydra.run.dir={tmp_path}",
    )
    assert ended.code == 1
    assert sentence in ended.output
    assert "Traceback" not in ended.output


def test_a_search_tries_strengths_and_is_compared_with_what_was_there(root, ablated, command):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert ablated.code == 0
    words = (
        "analyze", "experiment=regularisation_sweep", "suite=smoke", f"paths.root={root}", "reg=l2_to_init",
        "hydra.sweeper.n_trials=2", PAIR, *FEW,
    )  # fmt: skip
    first = command(*words)
    assert first.code == 0, first.output
    runs = [json.loads(path.read_text()) for path in (root / SEARCH).rglob("run.json")]
    strengths = {run["config"]["reg"]["lambda"] for run in runs}
    assert len(strengths) == 2
    assert all(1e-4 <= strength <= 10 for strength in strengths)
    table = pd.read_csv(root / SEARCH / "ablation_merges.csv")
    assert len(set(table["strength"]) & strengths) == 2
    assert "none-0" in set(table["setting"]), "plain fine-tuning from the ablation"
    before = models(root)
    again = command(*words)
    assert again.code == 0, again.output
    assert models(root) == before, "the same strengths again"
    assert "Pareto solutions" in first.output


def test_a_search_survives_a_strength_that_fails_and_leaves_out_what_is_not_comparable(
    root, ablated, command
):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert ablated.code == 0
    ended = command(
        "analyze", "experiment=regularisation_sweep", "suite=smoke", f"paths.root={root}", "reg=l2_to_init",
        "reg.lambda=choice(-1,0.1)", "hydra.sweeper.n_trials=5", "hydra.sweep.dir=${paths.root}/failing_search", PAIR, *FEW,
        "alpha=0.5",
    )  # fmt: skip
    assert ended.code == 1
    (failed,) = re.findall(r"(\d) of 5 jobs failed", ended.output)
    assert 0 < int(failed) < 5
    assert "Expected reg.lambda to be a finite number of at least 0, got -1." in ended.output
    assert "Traceback" not in ended.output
    assert set(pd.read_csv(root / "failing_search/ablation_merges.csv")["setting"]) == {"l2_to_init-0.1"}
    page = (root / "failing_search/ablation.html").read_text()
    assert "4 earlier analyses are left out: another alpha (null, here 0.5)" in page


def test_without_the_sweeper_the_extra_is_named():
    error = MissingConfigException(
        missing_cfg_file="hydra/sweeper/optuna",
        message="In 'analyze': Could not find 'hydra/sweeper/optuna'",
        options=[],
    )
    assert "mergeability[sweep]" in sentence(error)
