"""Functional metrics from the command line: on which images, without labels, for pairs and for larger sets."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mergeability.data.image_cache import prepared
from mergeability.data.inputs import Images
from mergeability.evaluation import probes
from mergeability.members import members
from mergeability.models import ClipModel
from mergeability.random import seeded_generator
from mergeability.store import Store

CONF = Path(__file__).parents[2] / "conf"
GOLDEN = Path(__file__).parents[1] / "golden"
FUNCTIONAL = [
    "base_agreement", "base_overlap", "ensemble_confidence", "ensemble_overlap", "partner_agreement", "partner_retention",
]  # fmt: skip


@pytest.fixture
def analyse(command, smoke_root, tmp_path):
    """Analyse the smoke suite; return how it ended and the folder of its results."""

    def run(*arguments, name="run"):
        folder = tmp_path / name
        where = (
            f"paths.root={smoke_root}",
            f"paths.store={tmp_path}/store",
            f"hydra.run.dir={folder}",
            "logger=csv",
        )
        plain = (
            "suite=smoke",
            "model=clip_mini",
            "metric=functional",
            "predictor=none",
            "suite.pixel_baseline=false",
        )
        ended = command("analyze", *plain, *where, *arguments)
        return ended, folder

    return run


def counted(folder, what="computed"):
    return json.loads((folder / "run.json").read_text())[what]


def test_every_pair_and_every_larger_set_has_them(analyse):
    ended, folder = analyse("merge=average", "arity=[2,3]")
    assert ended.code == 0, ended.output
    pairs, sets = pd.read_csv(folder / "pairs.csv"), pd.read_csv(folder / "sets.csv")
    assert len(pairs) == 6
    assert len(sets) == 4
    for table in (pairs, sets):
        assert table[FUNCTIONAL].notna().all(axis=None)
    # The base's agreement with each model, from the pairs of three tasks; a set's is the mean of its tasks'.
    of_pairs = pairs.set_index(["task_a", "task_b"])["base_agreement"]
    for row in sets.itertuples():
        a, b, c = row.tasks.split("+")
        assert row.base_agreement == pytest.approx((of_pairs[a, b] + of_pairs[a, c] + of_pairs[b, c]) / 3)
    assert counted(folder)["features"] == 5 * 4
    text = (folder / "report.html").read_text()
    assert (
        "Fewer than 64 unlabelled images: digits (32), letters (32), shapes (32), orientation (32)." in text
    )


def test_the_bases_answers_are_those_of_its_encoder_on_the_drawn_images(analyse, smoke_root):
    ended, folder = analyse("merge=none", "profile.unlabelled=16")
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(folder / "pairs.csv").set_index(["task_a", "task_b"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        suite = instantiate(compose("analyze", ["suite=smoke", "model=clip_mini"]).suite, _convert_="all")
    agreed = {}
    for name in ("digits", "shapes"):
        task, model = suite.tasks[name], suite.model
        held_out = prepared(task, "validation", model.resize, model.image_size, Store())
        chosen = torch.randperm(32, generator=seeded_generator("calibration", name, 42))[:16]
        images = model.preprocess(held_out.images[chosen])
        own = smoke_root / f"checkpoints/clip_mini/none-0/seed-0/{name}"
        head = safetensors.torch.load_file(own / "head.safetensors")["head"]
        answers = []
        for weights in (smoke_root / "checkpoints/clip_mini/base", own):
            encoder = model.architecture_only().visual.eval()
            state = safetensors.torch.load_file(weights / "model.safetensors")
            encoder.load_state_dict(
                {key.removeprefix("visual."): value for key, value in state.items()}, strict=False
            )
            with torch.no_grad():
                answers.append((encoder(images) @ head.T).argmax(1))
        agreed[name] = (answers[0] == answers[1]).float().mean().item()
    assert pairs.loc[("digits", "shapes"), "base_agreement"] == pytest.approx(sum(agreed.values()) / 2)


def test_a_second_run_passes_no_image_through_a_model(analyse):
    _, folder = analyse("merge=none")
    ended, second = analyse("merge=none", name="again")
    assert ended.code == 0, ended.output
    assert counted(second) == {}
    assert counted(second, "found")["features"] == 5 * 4
    assert (second / "pairs.csv").read_bytes() == (folder / "pairs.csv").read_bytes()


def test_labels_change_nothing(analyse, monkeypatch):
    ended, plain = analyse("merge=none")
    assert ended.code == 0, ended.output
    original = ClipModel.samples

    def shuffled(*arguments):
        found = original(*arguments)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1))
        return Images(found.images, found.labels[order])

    monkeypatch.setattr(ClipModel, "samples", shuffled)
    ended, other = analyse("merge=none", name="shuffled")
    assert ended.code == 0, ended.output
    assert "features" not in counted(other), "other labels are no reason to pass images through a model again"
    first, second = (pd.read_csv(folder / "pairs.csv") for folder in (plain, other))
    assert second[FUNCTIONAL].equals(first[FUNCTIONAL])
    assert not second["finetuned_accuracy"].equals(first["finetuned_accuracy"]), (
        "accuracies do depend on labels"
    )


def test_training_images_can_be_looked_at_instead(analyse):
    _, plain = analyse("merge=none")
    ended, other = analyse("merge=none", "profile.unlabelled_from=train", name="train")
    assert ended.code == 0, ended.output
    first, second = (pd.read_csv(folder / "pairs.csv")[FUNCTIONAL] for folder in (plain, other))
    assert not np.allclose(first, second)
    assert "Fewer than" not in (other / "report.html").read_text(), "there are 128 of each task"


def test_probes_and_scales_without_labels_stand_beside_the_others(analyse):
    words = ("merge=[average,ties]", "probe=16", "alpha=[own,tuned,unlabelled]", "alpha_grid=[0.3,1.0]")
    ended, folder = analyse(*words, "pairs=[[digits,letters],[shapes,orientation]]")
    assert ended.code == 0, ended.output
    pairs = pd.read_csv(folder / "pairs.csv")
    for method in ("average", "ties"):
        for suffix in ("", "_tuned", "_unlabelled"):
            assert pairs[f"probe_overlap_{method}{suffix}"].between(0, 1).all()
            assert pairs[f"probe_confidence_{method}{suffix}"].between(0, 1).all()
            assert pairs[f"norm_acc_{method}{suffix}"].notna().all()
        assert pairs[f"alpha_{method}_unlabelled"].isin([0.3, 1.0]).all()
    curves = pd.read_csv(folder / "alpha_curves.csv")
    assert len(curves) == 2 * 2 * 2 * 2 * 2, "pairs, tasks, methods, scales, with labels and without"
    assert curves["overlap"].notna().sum() == curves["norm_accuracy"].notna().sum() == len(curves) / 2
    report = (folder / "report.html").read_text()
    assert "α without labels" in report
    again, second = analyse(*words, "pairs=[[digits,letters],[shapes,orientation]]", name="again")
    assert again.code == 0
    assert counted(second) == {}
    assert (second / "pairs.csv").read_bytes() == (folder / "pairs.csv").read_bytes()


def test_the_images_that_choose_a_scale_do_not_judge_it(analyse, monkeypatch):
    made = []

    class Recorded(probes.Probe):
        def __init__(self, evaluator, inputs, own):
            super().__init__(evaluator, inputs, own)
            made.append(inputs["digits"])

    monkeypatch.setattr(probes, "Probe", Recorded)
    ended, _ = analyse(
        "merge=average", "pairs=[[digits,letters]]", "probe=16", "alpha=unlabelled", "alpha_grid=[1.0]"
    )
    assert ended.code == 0, ended.output
    images = {tuple(image.flatten().tolist()) for one in made for image in one.tensors["images"]}
    assert [len(one) for one in made] == [8, 8]
    assert len(images) == 16


def test_a_probe_alone_adds_the_plain_average_and_changes_no_outcome(analyse):
    _, plain = analyse("merge=ties", "pairs=[[digits,letters]]", "metric=[task_vector_l2_distance]")
    ended, probed = analyse(
        "merge=ties",
        "pairs=[[digits,letters]]",
        "metric=[task_vector_l2_distance]",
        "probe=64",
        name="probed",
    )
    assert ended.code == 0, ended.output
    first, second = (pd.read_csv(folder / "pairs.csv") for folder in (plain, probed))
    more = [name for name in second.columns if name not in first.columns]
    assert sorted(more) == [
        "probe_confidence_average", "probe_confidence_ties", "probe_overlap_average", "probe_overlap_ties",
    ]  # fmt: skip
    assert second[first.columns].equals(first)
    assert "Fewer than 64 unlabelled images" in (probed / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("probe=7", ["probe", "at least 8", "got 7"]),
        ("probe=true", ["probe", "got true"]),
        ("alpha=[own,best]", ["'own', 'tuned', 'unlabelled', 'both'", "best"]),
        ("alpha=[]", ["'own', 'tuned', 'unlabelled', 'both'"]),
        ("profile.unlabelled=7", ["profile.unlabelled", "at least 8", "got 7"]),
        ("profile.unlabelled=0", ["profile.unlabelled", "got 0"]),
        ("profile.unlabelled=true", ["profile.unlabelled", "got true"]),
        ("profile.unlabelled=16.5", ["profile.unlabelled", "got 16.5"]),
        ("profile.unlabelled_from=test", ["validation or train", "got 'test'"]),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(analyse, option, parts):
    ended, folder = analyse("merge=none", option)
    assert ended.code == 1
    assert "Traceback" not in ended.output
    for part in parts:
        assert part in ended.output, ended.output
    assert not (folder / "pairs.csv").exists()


def test_all_metrics_of_bare_checkpoints_are_those_that_need_no_images(command, tmp_path):
    models = ", ".join(f'{name}: "{GOLDEN}/{name}.safetensors"' for name in ("task0", "task1"))
    where = (f"paths.root={tmp_path}", f"hydra.run.dir={tmp_path}/run", "logger=csv")
    bare = ("suite=checkpoints", f"suite.base={GOLDEN}/base.safetensors", f"suite.models={{{models}}}")
    ended = command("analyze", *bare, "metric=all", *where)
    assert ended.code == 0, ended.output
    columns = set(pd.read_csv(tmp_path / "run/pairs.csv").columns) - {"task_a", "task_b"}
    assert {"stable_rank", "sign_conflict", "subspace_overlap_excess"} <= columns
    left_out = columns ^ (
        set(members("metric")) - {name for name in members("metric") if name.startswith("shared_")}
    )
    report = (tmp_path / "run/report.html").read_text()
    assert {"base_agreement", "activation_linear_cka", "input_gradient_dot_product"} <= left_out
    assert all(name in report for name in left_out)
    assert "Left out, since they need images" in report
    # Chosen by name, such a metric is missed.
    ended = command("analyze", *bare, "metric=[base_agreement,stable_rank]", *where)
    assert ended.code == 1
    assert "base_agreement" in ended.output
