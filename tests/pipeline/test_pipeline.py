"""From images to a report, on the smallest suite: four tasks, six pairs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from mergeability.data.rendered.source import Rendered
from mergeability.evaluation import evaluator as accuracy
from mergeability.evaluation.evaluator import Evaluator
from mergeability.members import members
from mergeability.profiles import subspaces

SMOKE_TASKS = ("digits", "letters", "shapes", "orientation")
METHODS = ("average", "ta", "ties", "dare", "tsv", "iso_c")
PREDICTORS = set(members("predictor"))
# Those of version 0.1.0.
KNOWN_PREDICTORS = {
    "mean", "additive", "dyadic", "ols", "ridge", "lasso", "elastic_net", "backward_elimination",
    "forward_selection", "pearson", "pearson_l1", "mlp", "trees",
}  # fmt: skip
# Of the study, what takes long is done less often.
QUICK = ("prediction.permutations=9", "prediction.seeds=0")
WHOLE = (*QUICK, "predictor.trees.trees=5")
CLOSED_FORMS = {"mean", "additive", "dyadic", "ols", "ridge"}
RECORD_FIELDS = {
    "method", "predictor", "protocol", "situation", "target", "r_mean", "r_std", "rho_mean", "train_r_mean",
    "pooled_r", "pooled_r_low", "pooled_r_high", "r_beyond_mean", "r_beyond_mean_low", "r_beyond_mean_high",
    "mae", "r2_over_training_mean", "n_folds", "n_pairs", "n_undefined",
}  # fmt: skip


@pytest.fixture(scope="module")
def analysed(smoke_root, command) -> Path:
    folder = smoke_root / "runs" / "first"
    where = (f"paths.root={smoke_root}", f"hydra.run.dir={folder}", "logger=csv")
    ended = command("analyze", "suite=smoke", "model=clip_mini", "merge=paper", *WHOLE, *where)
    assert ended.code == 0, ended.output
    (folder / "output.txt").write_text(ended.output)
    return folder


def card(root: Path, task: str) -> dict:
    return json.loads((root / f"checkpoints/clip_mini/none-0/seed-0/{task}/card.json").read_text())


def test_training_leaves_weights_head_and_card(smoke_root):
    base = safetensors.torch.load_file(smoke_root / "checkpoints/clip_mini/base/model.safetensors")
    assert any(name.startswith("transformer.") for name in base), "the base keeps its text tower"
    for task in SMOKE_TASKS:
        folder = smoke_root / f"checkpoints/clip_mini/none-0/seed-0/{task}"
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        assert set(weights) == {name for name in base if name.startswith("visual.")}
        assert any(not torch.equal(weights[name], base[name]) for name in weights), "training changed nothing"
        head = safetensors.torch.load_file(folder / "head.safetensors")["head"]
        told = card(smoke_root, task)
        scale = base["logit_scale"].exp()
        torch.testing.assert_close(head.norm(dim=1), scale.expand(len(head)), rtol=1e-4, atol=1e-4)
        assert told["task"] == task
        assert set(told["accuracy"]) == set(told["base_accuracy"]) == {"train", "validation", "test"}
        assert told["settings_hash"]
        assert told["images_per_second"] > 0
        assert not (folder / "unfinished").exists()


def test_a_finished_training_is_not_repeated(smoke_root, command):
    sizes = ("task.source.train=128", "task.source.validation=32", "task.source.test=64", "training.epochs=1")
    before = card(smoke_root, "digits")
    ended = command(
        "train", "task=digits", "model=clip_mini", *sizes, f"paths.root={smoke_root}", "logger=csv"
    )
    assert ended.code == 0
    assert "Already finished" in ended.output
    assert card(smoke_root, "digits") == before


def test_a_training_with_other_settings_is_refused_and_changes_nothing(smoke_root, command):
    before = card(smoke_root, "digits")
    ended = command(
        "train", "task=digits", "training.learning_rate=0.5", f"paths.root={smoke_root}", "logger=csv"
    )
    assert ended.code == 1
    assert "training.learning_rate (there 0.0005, now 0.5)" in ended.output or "learning_rate" in ended.output
    assert "Traceback" not in ended.output
    assert card(smoke_root, "digits") == before


def test_the_pair_table_has_every_pair_metric_and_outcome(analysed):
    pairs = pd.read_csv(analysed / "pairs.csv")
    assert len(pairs) == 6
    assert set(pairs["task_a"]) | set(pairs["task_b"]) == set(SMOKE_TASKS)
    for method in METHODS:
        a, b = pairs[f"acc_{method}_a"], pairs[f"acc_{method}_b"]
        np.testing.assert_allclose(pairs[f"acc_{method}"], (a + b) / 2)
        assert pairs[[f"acc_{method}_a", f"acc_{method}_b"]].stack().between(0, 1).all()
    outcomes = ("acc_", "norm_acc_", "kept_gain_", "alpha_")
    known = ("task_a", "task_b", "finetuned_accuracy", "base_accuracy", "zero_shot_ratio")
    metrics = [c for c in pairs.columns if not c.startswith(outcomes) and c not in known]
    assert len(metrics) == 28


def test_weight_space_numbers_agree_with_numpy_on_the_files(analysed, smoke_root):
    pairs = pd.read_csv(analysed / "pairs.csv").set_index(["task_a", "task_b"])
    base = safetensors.torch.load_file(smoke_root / "checkpoints/clip_mini/base/model.safetensors")

    def vector(task: str) -> np.ndarray:
        weights = safetensors.torch.load_file(
            smoke_root / f"checkpoints/clip_mini/none-0/seed-0/{task}/model.safetensors"
        )
        return np.concatenate([(weights[n] - base[n]).double().numpy().ravel() for n in sorted(weights)])

    for a, b in pairs.index:
        x, y = vector(a), vector(b)
        assert pairs.loc[(a, b), "task_vector_l2_distance"] == pytest.approx(np.linalg.norm(x - y), rel=1e-4)
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert pairs.loc[(a, b), "task_vector_cosine_similarity"] == pytest.approx(cosine, rel=1e-4)


def test_cosines_and_dots_have_one_sign_for_every_pair(analysed):
    pairs = pd.read_csv(analysed / "pairs.csv")
    for view in ("task_vector", "activation", "encoder_gradient", "input_gradient"):
        cosine, dot = pairs[f"{view}_cosine_similarity"], pairs[f"{view}_dot_product"]
        assert (np.sign(cosine) == np.sign(dot)).all(), view


def test_normalised_accuracy_is_relative_to_the_cards_accuracy(analysed, smoke_root):
    pairs = pd.read_csv(analysed / "pairs.csv")
    for _, row in pairs.iterrows():
        for side in "ab":
            own = card(smoke_root, row[f"task_{side}"])["accuracy"]["test"]
            if own > 0:
                assert row[f"norm_acc_ties_{side}"] == pytest.approx(row[f"acc_ties_{side}"] / own)


def test_predictions_have_one_record_a_method_target_predictor_and_protocol(analysed):
    records = json.loads((analysed / "prediction.json").read_text())
    assert all(set(record) == RECORD_FIELDS for record in records)
    assert {record["method"] for record in records} == set(METHODS)
    by_protocol = {name: [r for r in records if r["protocol"] == name] for name in ("loto", "l2to")}
    # Those that need functional metrics or probes have none here, and the report says so.
    without = {"functional", "probe", "additive_probe"}
    assert {r["predictor"] for r in by_protocol["loto"]} == (PREDICTORS - without) | {"finetuned"}
    assert "additive_probe, functional, probe predicted nothing" in (analysed / "report.html").read_text()
    assert PREDICTORS >= KNOWN_PREDICTORS
    later = PREDICTORS - KNOWN_PREDICTORS
    assert {r["predictor"] for r in by_protocol["l2to"]} - later == CLOSED_FORMS | {"finetuned"}
    for own in by_protocol.values():
        predictors = {record["predictor"] for record in own}
        assert len(own) == len(METHODS) * 2 * len(predictors)
    assert all(record["n_folds"] == 4 for record in by_protocol["loto"])
    assert all(record["n_folds"] == 6 for record in by_protocol["l2to"])


def test_the_own_accuracies_are_the_cards(analysed, smoke_root):
    for _, row in pd.read_csv(analysed / "pairs.csv").iterrows():
        own = [card(smoke_root, row[f"task_{side}"])["accuracy"]["test"] for side in "ab"]
        assert row["finetuned_accuracy"] == pytest.approx(np.mean(own))


def test_the_study_and_the_fitted_predictor_are_kept(analysed):
    tables = {path.stem for path in (analysed / "prediction").glob("*.csv")}
    assert tables >= {"variance", "relabelling", "single_metrics", "ablation", "intervals", "method_choice"}
    fitted = json.loads((analysed / "fitted.json").read_text())
    # In the order of their worth: all, those of bounded range, the bounded ones of weight space, all 18 of weight space.
    sizes = {one["name"]: len(one["metrics"]) for one in fitted["evidence"]}
    assert sizes == {
        "metrics": 28,
        "size-free metrics": 20,
        "size-free weight metrics": 16,
        "weight metrics": 18,
    }


def test_the_run_is_documented(analysed, smoke_root):
    run = json.loads((analysed / "run.json").read_text())
    assert run["versions"]["torch"] == torch.__version__.split("+")[0] or run["versions"]["torch"]
    assert run["checkpoint_sha256"] == {task: card(smoke_root, task)["sha256"] for task in SMOKE_TASKS}
    assert run["config"]["suite"]["name"] == "smoke"
    assert run["seconds"]["merging and evaluating"] > 0


def test_the_report_is_one_file_that_names_every_method(analysed):
    report = (analysed / "report.html").read_text()
    assert all(method in report for method in METHODS)
    assert "<script src=" not in report
    output = (analysed / "output.txt").read_text()
    assert "report.html" in output
    assert "iso_c" in output, "the closing table"


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(analysed, smoke_root, command, monkeypatch):
    monkeypatch.setattr(Rendered, "load", lambda *_: pytest.fail("an image was drawn"))
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("an SVD"))
    monkeypatch.setattr(subspaces, "decompose", lambda *_: pytest.fail("a decomposition"))
    monkeypatch.setattr(Evaluator, "_swap_in", lambda *_: pytest.fail("a merge was evaluated"))
    monkeypatch.setattr(accuracy, "correct", lambda *_: pytest.fail("a forward pass"))
    folder = smoke_root / "runs" / "second"
    where = (f"paths.root={smoke_root}", f"hydra.run.dir={folder}", "logger=csv")
    ended = command("analyze", "suite=smoke", "merge=paper", *WHOLE, *where)
    assert ended.code == 0, ended.output
    run = json.loads((folder / "run.json").read_text())
    assert run["computed"] == {}
    assert run["found"]["accuracy"] == 6 * 6 * 2 + 8
    assert (folder / "pairs.csv").read_bytes() == (analysed / "pairs.csv").read_bytes()
    assert (folder / "prediction.json").read_bytes() == (analysed / "prediction.json").read_bytes()


def test_a_sweep_over_methods_writes_one_summary(analysed, smoke_root, command):
    sweep = smoke_root / "runs" / "sweep"
    where = (f"paths.root={smoke_root}", f"hydra.sweep.dir={sweep}", "logger=csv")
    few = ("predictor=[additive,ridge]", "prediction.ablation=false", *QUICK)
    ended = command("analyze", "-m", "suite=smoke", "model=clip_mini", "merge=ties,ta", *few, *where)
    assert ended.code == 0, ended.output
    assert f"Summary of the sweep: {sweep / 'summary.html'}" in ended.output
    summary = pd.read_csv(sweep / "summary.csv")
    assert set(summary["method"]) == {"ties", "ta"}
    first = pd.read_csv(analysed / "pairs.csv")
    for job, method in enumerate(("ties", "ta")):
        pairs = pd.read_csv(sweep / str(job) / "pairs.csv")
        assert pairs[f"norm_acc_{method}"].tolist() == first[f"norm_acc_{method}"].tolist()
        assert (sweep / str(job) / "report.html").exists()
    assert (sweep / "summary.html").exists()
    consistency = pd.read_csv(sweep / "consistency.csv")
    assert consistency["target"].tolist() == ["norm_acc", "acc"]
    assert consistency["n_pairs"].tolist() == [6, 6]


def test_a_penalty_trains_into_its_own_folder_and_moves_the_weights(smoke_root, command):
    sizes = ("task.source.train=128", "task.source.validation=32", "task.source.test=64", "training.epochs=1")
    where = (f"paths.root={smoke_root}", "logger=csv", "progress=null", "trainer.log_every_n_steps=1")
    ended = command(
        "train", "-m", "task=digits", "reg=grad_magnitude,l2_to_init", "reg.lambda=0,1", *sizes, *where
    )
    assert ended.code == 0, ended.output
    assert ended.output.count("Already finished") == 2, "λ = 0 is the plain model, whatever the penalty"
    folder = smoke_root / "checkpoints/clip_mini"
    weights = {
        name: safetensors.torch.load_file(folder / name / "seed-0/digits/model.safetensors")["visual.proj"]
        for name in ("none-0", "grad_magnitude-1", "l2_to_init-1")
    }
    assert not torch.equal(weights["none-0"], weights["grad_magnitude-1"])
    assert not torch.equal(weights["none-0"], weights["l2_to_init-1"])
    runs = sorted((smoke_root / "runs/train").glob("*/*/csv/metrics.csv"))
    columns = [set(pd.read_csv(path).columns) for path in runs]
    assert any("penalty/grad_magnitude" in names for names in columns)
    assert any("penalty/l2_to_init" in names for names in columns)


def test_weights_and_biases_is_offline_without_an_account_and_never_prompts(
    smoke_root, command, tmp_path, monkeypatch
):
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    sizes = ("task.source.train=32", "task.source.validation=32", "task.source.test=32", "training.epochs=1")
    runs = tmp_path / "runs"
    where = (f"paths.root={smoke_root}", f"paths.runs={runs}", "logger=[csv,wandb]")
    ended = command("train", "-m", "task=digits,letters", "reg.lambda=2", *sizes, "progress=null", *where)
    assert ended.code == 0, ended.output
    assert len(list(runs.rglob("*.wandb"))) == 2, "one W&B run a job"
    few = ("metric=[task_vector_l2_distance]", *QUICK)
    ended = command("analyze", "suite=smoke", "merge=average", "predictor=additive", *few, *where)
    assert ended.code == 0, ended.output
    assert len(list(runs.rglob("*.wandb"))) == 3
