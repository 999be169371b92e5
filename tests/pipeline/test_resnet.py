"""A CLIP's ResNet through every stage: training, conv kernels as matrices, merges with batch norms made anew."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mergeability.data.image_cache import prepared
from mergeability.data.inputs import Inputs
from mergeability.profiles.activations import sample_activations
from mergeability.store import Store
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import Checkpoint

CONF = Path(__file__).parents[2] / "conf"
TASKS = ("digits", "letters", "shapes", "orientation")
TINY = (
    "model=rn50", "model.pretrained=null", "model.name=rn_tiny", "model.learning_rate=1e-3", "model.batch_size=16",
    "model.architecture={embed_dim:16,quick_gelu:true,"
    "vision_cfg:{image_size:32,layers:[1,1,2,1],width:8},"
    "text_cfg:{context_length:16,vocab_size:49408,width:32,heads:2,layers:1}}",
)  # fmt: skip
SIZES = ("task.source.train=128", "task.source.validation=32", "task.source.test=64", "training.epochs=1")


def trained(command, root, model, tasks, *more):
    where = (f"paths.root={root}", "logger=csv", "progress=null")
    ended = command("train", "-m", f"task={','.join(tasks)}", *model, *more, *where)
    assert ended.code == 0, ended.output
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory, command):
    return trained(command, tmp_path_factory.mktemp("outputs"), TINY, TASKS, *SIZES)


def analysed(command, root, folder, model, *more):
    ended = command(
        "analyze", "suite=smoke", *model, *more, f"paths.root={root}", f"hydra.run.dir={folder}", "logger=csv"
    )
    assert ended.code == 0, ended.output
    return pd.read_csv(folder / "pairs.csv").set_index(["task_a", "task_b"])


@pytest.fixture(scope="module")
def merged(root, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    methods = "merge=[average,ties,tsv,iso_c,regmean,fisher]"
    # How predictors fare does not depend on the architecture; two of them, and a short study.
    few = ("predictor=[additive,ridge]", "prediction.permutations=9", "prediction.ablation=false")
    some = "pairs=[[digits,letters],[digits,shapes],[letters,orientation],[shapes,orientation]]"
    table = analysed(command, root, folder, TINY, methods, some, "profile.matricize=conv", "save=true", *few)
    return folder, table


def weights(root, task):
    path = root / f"checkpoints/rn_tiny/none-0/seed-0/{task}/model.safetensors"
    return {name: value.double().numpy() for name, value in checkpoints.load(path).items()}


def test_the_base_is_made_from_the_seed_and_kept_with_both_towers(root):
    kept = checkpoints.load(root / "checkpoints/rn_tiny/base/model.safetensors")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = instantiate(compose("train", list(TINY)).model, _convert_="all")
    clip = model.build(seed=0)
    assert isinstance(clip.visual, open_clip.modified_resnet.ModifiedResNet)
    assert kept.keys() == clip.state_dict().keys()
    assert all(torch.equal(kept[name], value) for name, value in clip.state_dict().items())


def test_training_moves_weights_and_running_statistics(root):
    base = checkpoints.load(root / "checkpoints/rn_tiny/base/model.safetensors")
    tuned = weights(root, "digits")
    for name in ("conv1.weight", "layer3.1.conv2.weight", "attnpool.q_proj.weight", "bn1.running_mean"):
        assert not np.array_equal(tuned[f"visual.{name}"], base[f"visual.{name}"].double().numpy()), name
    assert tuned["visual.bn1.num_batches_tracked"] == 8


def test_kernels_are_matrices_to_the_metrics_where_that_is_asked_for(root, merged, command, tmp_path):
    _, table = merged
    assert table.filter(regex="overlap|rank|cosine|l2").notna().all(axis=None)
    base = checkpoints.load(root / "checkpoints/rn_tiny/base/model.safetensors")
    for a, b in table.index:
        shares = []
        left, right = weights(root, a), weights(root, b)
        for name in left:
            if left[name].ndim not in (2, 4):
                continue
            flat = [one[name] - base[name].double().numpy() for one in (left, right)]
            first, second = (delta.reshape(len(delta), -1) for delta in flat)
            if np.linalg.norm(first) == 0 or np.linalg.norm(second) == 0:
                continue
            k = min(10, *first.shape)
            Ua, Ub = (np.linalg.svd(one, full_matrices=False)[0][:, :k] for one in (first, second))
            shares.append(np.linalg.norm(Ua.T @ Ub) / k)
        expected = np.mean(shares)
        assert table.loc[(a, b), "subspace_overlap"] == pytest.approx(expected, rel=1e-3)
    plain = analysed(
        command, root, tmp_path / "plain", TINY, "merge=none", "metric=subspace_overlap", "predictor=none"
    )
    same = plain.loc[table.index, "subspace_overlap"]
    assert (same - table["subspace_overlap"]).abs().min() > 1e-3


def test_merges_are_made_evaluated_predicted_and_reported(merged):
    folder, table = merged
    for method in ("average", "ties", "tsv", "iso_c", "regmean", "fisher"):
        assert table[f"acc_{method}"].between(0, 1).all()
    assert (folder / "report.html").exists()
    assert json.loads((folder / "prediction.json").read_text())


def test_running_statistics_of_a_saved_merge_are_those_of_the_tasks_images(root, merged):
    folder, _ = merged
    state = checkpoints.load(folder / "merged/average/digits+letters/model.safetensors")
    mean = (
        weights(root, "digits")["visual.conv1.weight"] + weights(root, "letters")["visual.conv1.weight"]
    ) / 2
    np.testing.assert_allclose(state["visual.conv1.weight"].numpy(), mean, atol=1e-6)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfgs = [compose("train", [f"task={task}", *TINY, *SIZES]) for task in ("digits", "letters")]
    model = instantiate(cfgs[0].model, _convert_="all")
    tasks = [instantiate(cfg.task, _convert_="all") for cfg in cfgs]
    held_out = [prepared(task, "validation", model.resize, model.image_size, Store()) for task in tasks]
    images = torch.cat([model.preprocess(found.images) for found in held_out])
    outputs = torch.nn.functional.conv2d(images, state["visual.conv1.weight"], stride=2, padding=1).double()
    np.testing.assert_allclose(
        state["visual.bn1.running_mean"], outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(state["visual.bn1.running_var"], outputs.var((0, 2, 3)), rtol=1e-3)
    averaged = (
        weights(root, "digits")["visual.bn1.running_var"] + weights(root, "letters")["visual.bn1.running_var"]
    ) / 2
    assert not np.allclose(state["visual.bn1.running_var"], averaged, rtol=1e-3)


def test_activations_are_the_last_feature_map_averaged_over_its_places(root):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = instantiate(
            compose("train", [*TINY, "model.architecture.vision_cfg.image_size=96"]).model, _convert_="all"
        )
    encoder = model.architecture_only(seed=1).visual
    images = torch.randn(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(encoder.stem(images)))))
    assert features.shape == (5, 256, 3, 3)
    rows = sample_activations(encoder, encoder.state_dict(), Inputs({"images": images}), batch_size=2)
    found = rows.double().mean(0)
    np.testing.assert_allclose(found, features.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("prefix", ["visual.", "model.visual.", ""])
def test_a_resnet_comes_from_elsewhere_too(root, tmp_path, prefix):
    path = root / "checkpoints/rn_tiny/none-0/seed-0/digits/model.safetensors"
    state = {name.replace("visual.", prefix, 1): value for name, value in checkpoints.load(path).items()}
    found = Checkpoint.open(checkpoints.save(tmp_path / "m.safetensors", state)).state_dict()
    assert found.keys() == {f"visual.{name.removeprefix(prefix)}" for name in state}


@pytest.mark.parametrize("estimator", ["exact", "finite_difference"])
def test_penalties_see_through_batch_norms(root, command, estimator):
    options = ("reg.lambda=0.01", f"reg.penalty.estimator={estimator}", f"variant={estimator}")
    trained(command, root, TINY, ("digits",), *SIZES, *options)
    card = root / f"checkpoints/rn_tiny/grad_magnitude-0.01+{estimator}/seed-0/digits/card.json"
    assert json.loads(card.read_text())["settings"]["reg"]["lambda"] == 0.01
    counted = checkpoints.load(card.parent / "model.safetensors")["visual.layer1.0.bn2.num_batches_tracked"]
    assert counted == 8, "a second look at the same images is no second batch to a batch norm"


FEW = ("task.source.train=16", "task.source.validation=8", "task.source.test=8", "training.epochs=1")
FEW_OF_EACH = tuple(
    f"suite.tasks.{task}.source.{split}={count}"
    for task in ("digits", "letters")
    for split, count in (("train", 16), ("validation", 8), ("test", 8))
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [("rn50", ["profile.matricize=conv"]), ("vit_b16", ["profile.split_qkv=true"])],
)
def test_real_sizes_train_are_profiled_and_merge(command, tmp_path, name, options):
    """Random weights and a few images, on the CPU: every stage at the size it is made for."""
    model = (f"model={name}", "model.pretrained=null", "model.batch_size=8")
    root = trained(command, tmp_path / "outputs", model, ("digits", "letters"), *FEW)
    card = json.loads((root / f"checkpoints/{name}/none-0/seed-0/digits/card.json").read_text())
    assert card["images_per_second"] > 0
    table = analysed(
        command, root, tmp_path / "run", model, "pairs=[[digits,letters]]", "merge=[average,ties]", "predictor=none",
        "profile.samples=2", "profile.pool=[digits,letters]", "profile.merge_samples=8", "save=true", *options,
        *FEW_OF_EACH,
    )  # fmt: skip
    assert len(table) == 1
    assert table.filter(regex="task_vector|gradient|activation|rank|overlap").notna().all(axis=None)
    merge = Checkpoint.open(tmp_path / "run/merged/ties/digits+letters/model.safetensors")
    base = Checkpoint.open(root / f"checkpoints/{name}/base/model.safetensors")
    assert set(merge.names) == set(base.names)
