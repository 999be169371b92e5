"""A store that version 0.1.0 filled: the present code finds every entry, and computes the same entries again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

PUBLISHED = Path(__file__).parents[1] / "published" / "evidence_0.1.0"
TASKS = ("a", "b", "c")
VIEWS = ("task_vector", "activation", "activation_kernel", "encoder_gradient", "input_gradient")


class Attention(nn.Module):
    """Just enough of an attention to have fused projections."""

    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(12, 4))
        self.in_proj_bias = nn.Parameter(torch.zeros(12))

    def forward(self, tokens):
        query, key, value = (tokens @ self.in_proj_weight.mT + self.in_proj_bias).chunk(3, dim=-1)
        return tokens + torch.softmax(query @ key.mT, dim=-1) @ value


class Encoder(nn.Module):
    """A convolution, an attention and a projection, under open_clip's names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, stride=2, bias=False)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Attention()])
        self.proj = nn.Parameter(torch.zeros(4, 4))

    def forward(self, images):
        tokens = self.conv1(images).flatten(2).mT
        for block in self.transformer.resblocks:
            tokens = block(tokens)
        return tokens.mean(1) @ self.proj


def evidence(store):
    """Ask for every kind of evidence, as the published store was filled."""
    data = safetensors.torch.load_file(PUBLISHED / "data.safetensors")
    heads = {task: data[f"{task}.head"] for task in TASKS}
    calibration = {task: Inputs({"images": data[f"{task}.images"]}, data[f"{task}.labels"]) for task in TASKS}
    views = Views(Encoder(), heads, calibration, configuration={"width": 4})
    paths = {task: PUBLISHED / f"{task}.safetensors" for task in TASKS}
    vectors = TaskVectors.load(paths, PUBLISHED / "base.safetensors", store=store)
    vectors.relative_norms()
    vectors.svd("visual.proj", 2)
    profiles = Profiles(vectors, views)
    profiles.shared_grams("encoder_gradient")
    profiles.fisher()
    profiles.linear_inputs()
    for one in (profiles, Profiles(vectors.with_layout(split_qkv=True, matricize="conv"), views)):
        for view in VIEWS:
            one.gram(view)
        one.subspace_overlaps("left", "top", 2)
        one.singular_values(3)
        one.sign_counts(0.2)


def entries(folder):
    """List the entries of a store, but for the hashes of files, which depend on where the files are."""
    found = (path.relative_to(folder) for path in folder.glob("*/??/*"))
    return {path for path in found if path.parts[0] != "file_hash"}


KINDS = (
    "activation", "base_norm", "fisher", "gradient", "gram", "linear_inputs", "linear_parts", "magnitude", "overlap",
    "relative_norm", "shared_gradient", "sign_count", "singular", "svd",
)  # fmt: skip


def test_nothing_is_computed_again(tmp_path):
    shutil.copytree(PUBLISHED / "store", tmp_path / "store")
    before = entries(tmp_path / "store")
    store = Store(tmp_path / "store")
    evidence(store)
    assert not store.computed
    assert sorted({path.parts[0] for path in before}) == sorted(KINDS)
    assert set(KINDS) <= set(store.found) | {"base_norm", "singular"}, (
        "what others are made of is not looked for"
    )
    assert entries(tmp_path / "store") == before


@pytest.fixture(scope="module")
def refilled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refilled") / "store"
    evidence(Store(folder))
    return folder


def test_an_empty_store_gets_the_same_entries(refilled):
    assert entries(refilled) == entries(PUBLISHED / "store")


@pytest.mark.parametrize("kind", KINDS)
def test_the_entries_hold_the_same(refilled, kind):
    paths = sorted(path for path in entries(refilled) if path.parts[0] == kind)
    assert paths
    for path in paths:
        old, new = PUBLISHED / "store" / path, refilled / path
        if path.suffix == ".json":
            agree(json.loads(old.read_text()), json.loads(new.read_text()))
            continue
        expected, found = safetensors.torch.load_file(old), safetensors.torch.load_file(new)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == expected[name].dtype
            sizes = [tensor.double().numpy(), expected[name].double().numpy()]
            if kind in ("singular", "svd"):
                # Singular vectors have no sign.
                sizes = [abs(one) for one in sizes]
            np.testing.assert_allclose(*sizes, rtol=1e-4, atol=1e-5 * abs(sizes[1]).max())


def agree(old, new):
    assert new["key"] == old["key"]
    assert new["value"].keys() == old["value"].keys()
    for name, value in new["value"].items():
        if name == "parts":
            assert value == old["value"][name]
        else:
            np.testing.assert_allclose(value, old["value"][name], rtol=1e-5)
