"""The golden values from every layout of the same weights, and with matrices cut in other ways."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from mergeability.errors import UserError
from mergeability.metrics.catalogue import CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.task_vectors.vectors import TaskVectors

TASKS = ("task0", "task1", "task2", "task3")
K, COUNT = 10, 100

# Written by hand. open_clip's name of a tensor outside the blocks → Hugging Face's.
OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
# The same inside a block, before `.weight` and `.bias`.
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def as_hugging_face(state, prefix):
    """Rename open_clip's tensors to Hugging Face's, queries, keys and values apart, the projection turned."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("visual.")
        if name == "proj":
            renamed["visual_projection.weight"] = np.ascontiguousarray(value.T)
        elif name in OUTSIDE:
            renamed[prefix + OUTSIDE[name]] = value
        else:
            _, _, block, rest = name.split(".", 3)
            layer = f"{prefix}encoder.layers.{block}."
            module, _, kind = rest.rpartition(".")
            if kind.startswith("in_proj_"):
                kind = kind.removeprefix("in_proj_")
                for part, third in zip("qkv", np.split(value, 3), strict=True):
                    renamed[f"{layer}self_attn.{part}_proj.{kind}"] = np.ascontiguousarray(third)
            else:
                renamed[f"{layer}{INSIDE[module]}.{kind}"] = value
    return renamed


def older_hugging_face(state):
    """Make a whole `CLIPModel` of the older generation: a text tower and an integer buffer beside it."""
    beside = {
        "vision_model.embeddings.position_ids": np.arange(17)[None],
        "text_model.final_layer_norm.weight": np.ones(5, np.float32),
        "logit_scale": np.array(4.6, np.float32),
    }
    return {**as_hugging_face(state, "vision_model."), **beside}


def newer_hugging_face(state):
    return as_hugging_face(state, "")


def open_clip(state):
    return state


def bare_tower(state):
    return {name.removeprefix("visual."): value for name, value in state.items()}


def split_open_clip(state):
    """Keep open_clip's names inside a wrapper, with queries, keys and values apart."""
    renamed = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".in_proj_")
        if not stem:
            renamed[f"module.{name}"] = value
            continue
        for part, third in zip("qkv", np.split(value, 3), strict=True):
            end = "_proj_weight" if kind == "weight" else "_proj.bias"
            renamed[f"module.{stem}.{part}{end}"] = np.ascontiguousarray(third)
    return renamed


def in_float64(state):
    return {name: value.astype(np.float64) for name, value in state.items()}


LAYOUTS = (open_clip, older_hugging_face, newer_hugging_face, bare_tower, split_open_clip, in_float64)
# The base's layout, then one for each task.
CHOICES = {
    **{layout.__name__: (layout,) * 5 for layout in LAYOUTS},
    "base in open_clip's names": (open_clip, *LAYOUTS[1:5]),
    "base in Hugging Face's names": (
        older_hugging_face,
        open_clip,
        newer_hugging_face,
        open_clip,
        in_float64,
    ),
}


@pytest.fixture(scope="module")
def states(golden):
    return {name: safetensors.numpy.load_file(golden / f"{name}.safetensors") for name in ("base", *TASKS)}


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())["pairs"]


@pytest.fixture
def rewrite(states, tmp_path):
    """Write the golden models in some layouts; give their paths by name, the base's among them."""

    def write(layouts):
        paths = {}
        for (name, state), layout in zip(states.items(), layouts, strict=True):
            paths[name] = tmp_path / f"{name}.safetensors"
            safetensors.numpy.save_file(layout(state), paths[name])
        return paths

    return write


def task_vectors(paths):
    return TaskVectors.load({task: paths[task] for task in TASKS}, paths["base"])


def assert_golden(table, expected, names=tuple(WEIGHT_SPACE)):
    assert len(table) == len(expected) == 6
    for pair, values in expected.items():
        for name in names:
            absolute = 1e-5 if abs(values[name]) < 0.1 else 0
            found = table.loc[tuple(pair.split("__")), name]
            assert found == pytest.approx(values[name], rel=1e-4, abs=absolute), (pair, name)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_layout_has_the_golden_values(rewrite, expected, choice):
    assert_golden(measure(task_vectors(rewrite(CHOICES[choice]))), expected)


def test_the_layouts_are_other_files_of_the_same_numbers(states):
    sizes = {name: sum(value.size for value in states[name].values()) for name in states}
    for layout in LAYOUTS[1:]:
        written = layout(states["task1"])
        assert written.keys() != states["task1"].keys() or layout is in_float64
        beside = 17 + 5 + 1 if layout is older_hugging_face else 0
        assert sum(value.size for value in written.values()) == sizes["task1"] + beside
    assert not any("vision_model" in name for name in newer_hugging_face(states["base"]))
    turned = newer_hugging_face(states["base"])["visual_projection.weight"]
    np.testing.assert_array_equal(turned, states["base"]["visual.proj"].T)


def test_the_command_gives_the_golden_values_of_mixed_layouts(command, rewrite, expected, tmp_path):
    paths = rewrite(CHOICES["base in Hugging Face's names"])
    models = ", ".join(f"{task}: '{paths[task]}'" for task in TASKS)
    ended = command(
        "analyze", "suite=checkpoints", f"suite.base='{paths['base']}'", f"suite.models={{{models}}}",
        f"paths.root={tmp_path / 'outputs'}", f"hydra.run.dir={tmp_path / 'run'}", "logger=csv",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert_golden(pd.read_csv(tmp_path / "run/pairs.csv").set_index(["task_a", "task_b"]), expected)


def overlaps_by_hand(pairs):
    """Average the six overlaps over pairs of matrices, from NumPy's SVD of each."""
    found = {name: [] for name in CATEGORIES["subspace"]}
    for left, right in pairs:
        (Ua, Sa, Va), (Ub, Sb, Vb) = (np.linalg.svd(one, full_matrices=False) for one in (left, right))
        Sa, Sb = Sa[:COUNT], Sb[:COUNT]
        found["singular_value_overlap"].append(Sa @ Sb / np.linalg.norm(Sa) / np.linalg.norm(Sb))
        k = min(K, *left.shape)
        found["subspace_overlap"].append(np.linalg.norm(Ua[:, :k].T @ Ub[:, :k]) / k)
        for end, rows in (("top", slice(k)), ("bottom", slice(-k, None))):
            cosines = np.linalg.svd(Va[rows] @ Vb[rows].T, compute_uv=False)
            found[f"right_subspace_overlap_{end}_k"].append(np.linalg.norm(cosines) / np.sqrt(k))
            found[f"interaction_matrix_overlap_{end}_k"].append(np.mean(cosines**2))
    return {name: np.mean(values) for name, values in found.items()}


def layerwise_rank_by_hand(pairs):
    """Average the effective rank of two flattened deltas over tensors, weighted by their norms."""
    ranks, weights = [], []
    for left, right in pairs:
        values = np.linalg.svd(np.stack([left.ravel(), right.ravel()]), compute_uv=False)
        share = values / values.sum()
        ranks.append(np.exp(-np.sum(share * np.log(share))))
        weights.append(np.linalg.norm(left) + np.linalg.norm(right))
    return np.average(ranks, weights=weights)


def deltas(states, task, *, split, flatten):
    """Cut a task's deltas by hand: thirds of the fused projections, kernels as matrices."""
    found = []
    for name, value in states[task].items():
        delta = value.astype(np.float64) - states["base"][name]
        if flatten and delta.ndim == 4:
            delta = delta.reshape(len(delta), -1)
        found += np.split(delta, 3) if split and "in_proj" in name else [delta]
    return found


@pytest.mark.parametrize(
    ("split", "matricize", "matrices"), [(True, None, 14), (False, "conv", 11), (True, "conv", 15)]
)
def test_cut_in_another_way_overlaps_are_those_of_the_cut_matrices(
    states, rewrite, expected, split, matricize, matrices
):
    for layouts in (CHOICES["open_clip"], CHOICES["base in Hugging Face's names"]):
        profiles = Profiles(task_vectors(rewrite(layouts)).with_layout(split_qkv=split, matricize=matricize))
        table = measure(profiles)
        # Layerwise ranks are of the tensors too, all else is of the models as a whole.
        whole = [*CATEGORIES["geometry"], *CATEGORIES["effective rank"][:5]]
        assert_golden(table, expected, whole)
        for a, b in table.index:
            cut = {"split": split, "flatten": matricize == "conv"}
            pairs = list(zip(deltas(states, a, **cut), deltas(states, b, **cut), strict=True))
            by_hand = overlaps_by_hand([pair for pair in pairs if pair[0].ndim == 2])
            assert sum(pair[0].ndim == 2 for pair in pairs) == matrices == len(profiles.matrix_shapes())
            by_hand["layerwise_effective_rank"] = layerwise_rank_by_hand(pairs)
            score = 2 - by_hand["layerwise_effective_rank"]
            by_hand["layerwise_effective_rank_mergeability_score"] = score
            assert by_hand.keys() == set(WEIGHT_SPACE) - set(whole)
            for name, value in by_hand.items():
                assert table.loc[(a, b), name] == pytest.approx(value, rel=1e-5), (a, b, name)


def test_the_fused_projection_scores_other_than_its_thirds(rewrite, expected):
    """The cut is seen: at least one overlap of each pair is another one than the published layout's."""
    paths = rewrite(CHOICES["open_clip"])
    for options in ({"split_qkv": True}, {"matricize": "conv"}):
        table = measure(task_vectors(paths).with_layout(**options))
        for pair, values in expected.items():
            row = table.loc[tuple(pair.split("__"))]
            assert any(abs(row[name] / values[name] - 1) > 1e-3 for name in CATEGORIES["subspace"])


def test_another_way_to_cut_a_kernel_is_refused(rewrite):
    with pytest.raises(UserError, match="Expected matricize='conv' or null, got 'linear'"):
        task_vectors(rewrite(CHOICES["open_clip"])).with_layout(matricize="linear")


def test_a_fused_projection_that_has_no_thirds_loses_no_row(tmp_path):
    states = {"base": np.ones((10, 4), np.float32)}
    states |= {task: states["base"] + seed * np.float32(0.05) for seed, task in enumerate("ab", start=1)}
    for task in "ab":
        states[task][9] += 0.1
    for name, value in states.items():
        safetensors.numpy.save_file({"attn.in_proj_weight": value}, tmp_path / f"{name}.safetensors")
    vectors = TaskVectors.load(
        {task: tmp_path / f"{task}.safetensors" for task in "ab"}, tmp_path / "base.safetensors"
    )
    rows = np.stack([(states[task] - states["base"]).ravel() for task in "ab"]).astype(np.float64)
    # To refuse would be fine too.
    with contextlib.suppress(UserError):
        np.testing.assert_allclose(
            Profiles(vectors.with_layout(split_qkv=True)).gram(), rows @ rows.T, rtol=1e-6
        )
