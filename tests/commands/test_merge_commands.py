"""Merging from the command line: which models, at which scale, on how many images, and what is kept of it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from mergeability.pipeline import saving
from mergeability.pipeline import tasks as task_analysis

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ("task0", "task1", "task2")


@pytest.fixture
def smoke(command, smoke_root, tmp_path):
    """Analyse the smoke suite: weight-space metrics of one kind, no prediction."""

    def analyse(*arguments, folder=None):
        place = tmp_path / "run" if folder is None else folder
        plain = ("suite=smoke", "metric=task_vector_l2_distance", "predictor=none", "logger=csv")
        ended = command("analyze", *plain, f"paths.root={smoke_root}", f"hydra.run.dir={place}", *arguments)
        return ended, place

    return analyse


def golden(*arguments, names=NAMES):
    models = ", ".join(f'{name}: "{GOLDEN}/{name}.safetensors"' for name in names)
    return (
        "suite=checkpoints",
        f"suite.base={GOLDEN}/base.safetensors",
        f"suite.models={{{models}}}",
        *arguments,
    )


@pytest.fixture
def bare(command, tmp_path):
    def analyse(*arguments, folder=None, **options):
        place = tmp_path / "run" if folder is None else folder
        where = (f"paths.root={tmp_path}/outputs", f"hydra.run.dir={place}", "logger=csv")
        ended = command("analyze", *golden("metric=task_vector_l2_distance", **options), *where, *arguments)
        return ended, place

    return analyse


def refused(ended, *parts):
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    for part in parts:
        assert part in ended.output, ended.output


def test_chosen_pairs_on_part_of_the_images_with_intervals(smoke):
    pairs = "pairs=[[letters, digits], [shapes, digits]]"
    ended, folder = smoke("merge=[average,ties]", pairs, "test_images=40")
    assert ended.code == 0, ended.output
    table = pd.read_csv(folder / "pairs.csv")
    assert table[["task_a", "task_b"]].to_numpy().tolist() == [["digits", "letters"], ["digits", "shapes"]]
    for method in ("average", "ties"):
        assert (table[f"acc_{method}_a"] * 40).round(6).isin(range(41)).all(), "of forty images"
        assert (table[f"low_norm_acc_{method}"] < table[f"norm_acc_{method}"]).all()
        assert (table[f"high_acc_{method}"] > table[f"acc_{method}"]).all()
    rows = pd.read_csv(folder / "accuracies.csv")
    assert len(rows) == 2 * 2 * 2
    assert set(rows["tasks"]) == {"digits+letters", "digits+shapes"}
    assert "confidence interval" in (folder / "report.html").read_text()


def test_a_pair_needs_only_its_own_models(smoke, smoke_root, tmp_path, command):
    root = tmp_path / "few"
    source = smoke_root / "checkpoints"
    shutil.copytree(source, root / "checkpoints", ignore=shutil.ignore_patterns("shapes", "orientation"))
    ended, folder = smoke(f"paths.root={root}", "merge=average", "pairs=[[digits, letters]]")
    assert ended.code == 0, ended.output
    assert len(pd.read_csv(folder / "pairs.csv")) == 1
    refused(smoke(f"paths.root={root}", "merge=average")[0], "No checkpoint for 'shapes', 'orientation'")


def test_random_sets_and_the_whole_suite(smoke):
    ended, folder = smoke("merge=[average,tsv]", "arity=[3, all]", "sets=2", "seed=0")
    assert ended.code == 0, ended.output
    sets = pd.read_csv(folder / "sets.csv")
    assert sets["arity"].tolist() == [3, 3, 4]
    assert sets["tasks"].iloc[2] == "digits+letters+shapes+orientation"
    rows = pd.read_csv(folder / "accuracies.csv")
    for (tasks, method), group in rows.groupby(["tasks", "method"]):
        assert group["task"].tolist() == tasks.split("+")
        row = sets.set_index("tasks").loc[tasks]
        assert row[f"acc_{method}"] == pytest.approx(group["accuracy"].mean())
    pairs = pd.read_csv(folder / "pairs.csv")
    assert len(pairs) == 6
    assert not any(column.startswith("acc_") for column in pairs.columns)
    text = (folder / "report.html").read_text()
    assert "How well do more than two models merge?" in text
    assert 'id="methods"' not in text


def test_both_scales_of_every_kind_of_method_and_a_second_run_that_computes_nothing(smoke, tmp_path):
    arguments = (
        "merge=[ta,iso_c,fisher,regmean]",
        "alpha=both",
        "alpha_grid=[0.3, 1.0]",
        "validation_images=20",
        "pairs=[[digits,letters],[shapes,orientation]]",
    )
    ended, folder = smoke(*arguments)
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(folder / "pairs.csv")
    for method in ("ta", "iso_c", "fisher", "regmean"):
        assert pairs[f"alpha_{method}_tuned"].isin([0.3, 1.0]).all()
        assert pairs[f"norm_acc_{method}_tuned"].notna().all()
    assert (pairs["alpha_ta"] == 0.3).all()
    curves = pd.read_csv(folder / "alpha_curves.csv")
    assert len(curves) == 2 * 4 * 2 * 2
    text = (folder / "report.html").read_text()
    assert "How does the outcome depend on the scale α?" in text
    assert "iso_c: no α is published for 2 models of this architecture; α = 1 is used." in text
    again, second = smoke(*arguments, folder=tmp_path / "second")
    assert again.code == 0
    assert (second / "pairs.csv").read_bytes() == (folder / "pairs.csv").read_bytes()
    assert json.loads((second / "run.json").read_text())["computed"] == {}


def test_scales_are_tuned_on_validation_images_and_judged_on_test_images(smoke, monkeypatch):
    seen, evaluator = {}, task_analysis.Evaluator

    def watched(*arguments, **options):
        made = evaluator(*arguments, **options)
        for split in ("tests", "validation"):
            seen[split] = {task: len(images) for task, images in getattr(made, split).items()}
        return made

    monkeypatch.setattr(task_analysis, "Evaluator", watched)
    ended, _ = smoke("merge=average", "alpha=tuned", "alpha_grid=[1.0]", "pairs=[[digits, letters]]")
    assert ended.code == 0, ended.output
    assert seen["validation"] == {"digits": 32, "letters": 32}
    assert seen["tests"] == {"digits": 64, "letters": 64}


def test_a_saved_merge_is_the_base_and_the_mean_of_the_updates(bare):
    ended, folder = bare("merge=average", "save=true", "merge.average.alpha=0.5")
    assert ended.code == 0, ended.output
    base = safetensors.torch.load_file(GOLDEN / "base.safetensors")
    for a, b in (("task0", "task1"), ("task0", "task2"), ("task1", "task2")):
        place = folder / "merged" / "average" / f"{a}+{b}"
        merged = safetensors.torch.load_file(place / "model.safetensors")
        tuned = [safetensors.torch.load_file(GOLDEN / f"{name}.safetensors") for name in (a, b)]
        for name, value in merged.items():
            expected = base[name] + 0.5 * ((tuned[0][name] + tuned[1][name]) / 2 - base[name])
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        card = json.loads((place / "card.json").read_text())
        assert (card["alpha"], card["alpha_from"]) == (0.5, "the method's own")
        assert set(card["parents"]) == {a, b}
        assert card["merge"]["method"].endswith("Average")
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "merged").rglob("model.safetensors")}
    again, _ = bare("merge=average", "save=true", "merge.average.alpha=0.5")
    assert again.code == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}, "what is there is left as it is"
    changed, _ = bare("merge=average", "save=true", "merge.average.alpha=0.7")
    assert changed.code == 0
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in stamps.items())


def test_a_merge_of_all_is_exported_in_hugging_faces_names(bare):
    ended, folder = bare("merge=tsv", "arity=all", "export=hf")
    assert ended.code == 0, ended.output
    place = folder / "merged" / "tsv" / "task0+task1+task2"
    names = safetensors.torch.load_file(place / "model.safetensors")
    assert "vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert "config.json" in json.loads((place / "card.json").read_text())["note"]


def test_an_evaluated_merge_is_saved_with_its_accuracies_and_loads_in_transformers(smoke):
    transformers = pytest.importorskip("transformers")
    ended, folder = smoke("merge=ties", "pairs=[[digits, letters]]", "export=hf")
    assert ended.code == 0, ended.output
    place = folder / "merged" / "ties" / "digits+letters"
    card = json.loads((place / "card.json").read_text())
    pairs = pd.read_csv(folder / "pairs.csv")
    assert card["accuracies"]["letters"]["accuracy"] == pytest.approx(pairs["acc_ties_b"].iloc[0])
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(place)
    assert model.config.image_size == 32
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).image_embeds.shape == (1, 64)


def test_methods_that_need_data_name_those_that_do_not(bare):
    ended, folder = bare("merge=[fisher,ties]", "save=true")
    refused(
        ended, "fisher requires calibration images, but suite=checkpoints provides none", "average, ta, ties"
    )
    assert not (folder / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["merge=ties"], "Set save=true, or remove merge="),
        (["merge=ties", "save=true", "alpha=tuned"], "Tuning alpha requires validation images"),
        (["merge=slerp", "save=true", "arity=3"], "slerp merges exactly 2 models, but arity is 3"),
        (["merge=ties", "save=true", "arity=4"], "arity=4 exceeds the 3 models"),
        (["merge=ties", "save=true", "pairs=[[task0, task9]]"], "pairs=… contains task9"),
        (["merge=ties", "save=true", "pairs=[[task0, task1]]", "arity=3"], "either pairs=…, or arity=…"),
        (
            ["merge=ties", "alpha=much"],
            "alpha to be a finite number, one of the words 'own', 'tuned', 'unlabelled', 'both', or a list",
        ),
        (["merge=ties", "alpha=both", "alpha_grid=[1, 0.5]"], "alpha_grid to be ascending"),
        (["merge=ties", "merge.ties.alpha=best"], "alpha to be a finite number or 'tuned'"),
        (["merge=ties", "export=onnx"], "export to be hf or null"),
        (["merge=ties", "test_images=0"], "test_images to be a whole number of at least 1"),
        (["merge=ties", "save=true", "arity=1"], "number of at least 2, or 'all'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(bare, arguments, part):
    refused(bare(*arguments)[0], part)


def test_merges_that_will_not_fit_on_the_disk_are_refused_before_the_first(bare, monkeypatch):
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    ended, folder = bare("merge=[average,ta]", "save=true")
    refused(ended, "Saving 6 merges of", "Choose fewer pairs with pairs=…")
    assert not list(folder.rglob("model.safetensors"))


def test_limits_of_how_far_a_model_may_be_from_its_base_are_options(bare):
    refused(bare("suite.refuse_above=1e-6")[0], "not fine-tuned from this base")
    ended, _ = bare("suite.warn_above=1e-6")
    assert ended.code == 0
    assert "Check that the model was fine-tuned from this base." in ended.output


def test_options_that_change_a_matrix_change_its_merge(bare, tmp_path):
    arguments = ("merge=iso_c", "save=true", "pairs=[[task0, task1]]")
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    found = {}
    for option in ("profile.split_qkv=false", "profile.split_qkv=true"):
        ended, folder = bare(*arguments, option, folder=tmp_path / option[-4:])
        assert ended.code == 0, ended.output
        place = folder / "merged" / "iso_c" / "task0+task1" / "model.safetensors"
        found[option] = safetensors.torch.load_file(place)[name].double().numpy()
    base, a, b = (
        safetensors.torch.load_file(GOLDEN / f"{file}.safetensors")[name].double().numpy()
        for file in ("base", "task0", "task1")
    )
    total = a + b - 2 * base

    def isotropic(matrix):
        U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
        return S.mean() * U @ Vh

    parts = np.concatenate([isotropic(part) for part in np.split(total, 3)])
    np.testing.assert_allclose(found["profile.split_qkv=false"] - base, isotropic(total), atol=1e-5)
    np.testing.assert_allclose(found["profile.split_qkv=true"] - base, parts, atol=1e-5)


def test_the_format_of_saved_merges_can_be_chosen_and_what_rounding_does_is_told(bare):
    ended, folder = bare("merge=average", "pairs=[[task0,task1]]", "save=true", "dtype=bfloat16")
    assert ended.code == 0, ended.output
    place = folder / "merged/average/task0+task1"
    weights = safetensors.torch.load_file(place / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.bfloat16}
    card = json.loads((place / "card.json").read_text())
    assert card["dtype"] == "bfloat16"
    survives = card["rounding"]["squared_change_that_survives"]
    assert 0 < survives < 1
    assert ("rounding to bfloat16 leaves" in ended.output) == (survives < 0.95)
    again, _ = bare("merge=average", "pairs=[[task0,task1]]", "save=true")
    assert again.code == 0
    card = json.loads((place / "card.json").read_text())
    assert card["dtype"] == "float32"
    assert "rounding" not in card


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("save=true", "dtype=int8"),
            "Expected dtype to be float32, float16 or bfloat16 or null, got 'int8'.",
        ),
        (("dtype=float16",), "dtype=float16 only affects saved merges. Add save=true, or remove dtype=."),
    ],
)
def test_a_format_that_cannot_be_is_one_sentence(bare, words, sentence):
    ended, _ = bare("merge=average", *words)
    assert ended.code == 1
    assert sentence in ended.output


def test_checkpoints_can_be_merged_without_any_metric(bare):
    ended, folder = bare("merge=average", "pairs=[[task0,task1]]", "save=true", "metric=[]")
    assert ended.code == 0, ended.output
    assert (folder / "merged/average/task0+task1/model.safetensors").exists()
    assert pd.read_csv(folder / "pairs.csv").columns.tolist() == ["task_a", "task_b"]
