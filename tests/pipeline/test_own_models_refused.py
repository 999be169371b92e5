"""Descriptions of models of one's own, and their heads: read as they are meant, or refused in one sentence."""

import pytest
import safetensors.torch
import torch
import yaml

from mergeability.errors import UserError
from mergeability.examples import tiny_clip, tiny_text_model
from mergeability.pipeline.own_models import TEMPLATE, ModelSuite, OwnModel
from mergeability.pipeline.suites import CheckpointSuite

ONE = {"weights": "a.safetensors", "images": "photos"}
MODELS = {name: {**ONE, "classes": ["cat", "dog"]} for name in ("a", "b")}


@pytest.mark.parametrize("options", ["a.safetensors", None, ["a.safetensors"]])
def test_options_that_are_no_mapping_are_refused_with_an_example(options):
    with pytest.raises(
        UserError, match=r"Expected suite\.models\.a to set weights, images.*a: \{weights: a\.safe"
    ):
        OwnModel.of("a", options)


def test_one_template_need_not_be_a_list():
    assert OwnModel.of("a", {**MODELS["a"], "templates": "a sketch of a {}."}).templates == [
        "a sketch of a {}."
    ]
    assert OwnModel.of("a", MODELS["a"]).templates == (TEMPLATE,)
    with pytest.raises(
        UserError, match=r"suite\.models\.a: the template 'a sketch' lacks the placeholder \{\}"
    ):
        OwnModel.of("a", {**MODELS["a"], "templates": "a sketch"})


@pytest.mark.parametrize("base", [None, ""])
def test_a_suite_without_a_base_is_refused(base):
    with pytest.raises(UserError, match=r"The base model is missing\. Set suite\.base="):
        ModelSuite("mine", tiny_clip(), base, MODELS)


def test_a_model_that_reads_texts_is_refused():
    with pytest.raises(UserError, match=r"Only image models can be given in suite\.models"):
        ModelSuite("mine", tiny_text_model(), "base.safetensors", MODELS)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], r"mine\.yaml has no models\. Expected `base: …` and `models: \{name:"),
        ({"base": "b"}, r"mine\.yaml has no models"),
        ({"models": ["a", "b"]}, r"mine\.yaml has no models"),
        (
            {"models": MODELS, "model": "vit", "alpha": 1},
            r"only the keys `base` and `models` in .*got alpha, model\.",
        ),
        (
            {"base": "b", "models": {"a": "a.safetensors", "b": None}},
            r"suite\.models\.a to set .*got 'a\.safetensors'",
        ),
    ],
)
def test_a_file_that_describes_no_models_is_refused(tmp_path, content, sentence):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=sentence):
        ModelSuite("mine", tiny_clip(), None, str(tmp_path / "mine.yaml"))


def with_head(tmp_path, tensors, **more):
    safetensors.torch.save_file(tensors, tmp_path / "head.safetensors")
    own = {**ONE, "head": str(tmp_path / "head.safetensors"), **more}
    return ModelSuite("mine", tiny_clip(), "base.safetensors", {"a": own, "b": own})


@pytest.mark.parametrize(
    ("tensors", "more", "sentence"),
    [
        ({}, {}, r"Expected one tensor of shape \(classes, d\) in the head .*got none\."),
        ({"head": torch.ones(16)}, {}, r"of 'a', got head \(16,\)\."),
        ({"head": torch.ones(2, 16), "scale": torch.ones(1)}, {}, r"got head \(2, 16\), scale \(1,\)\."),
        ({"head": torch.ones(2, 8)}, {}, r"expects features of 8 dimensions, but model=tiny produces 16\."),
        (
            {"head": torch.ones(3, 16)},
            {"classes": ["cat", "dog"]},
            r"has 3 classes, but 2 class names are given",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, tensors, more, sentence):
    with pytest.raises(UserError, match=sentence):
        with_head(tmp_path, tensors, **more).heads()


def test_a_head_is_read_as_float32(tmp_path):
    head = torch.arange(32.0).reshape(2, 16).half()
    found = with_head(tmp_path, {"any": head}).heads()
    assert list(found) == ["a", "b"]
    assert found["a"].dtype == torch.float32
    assert torch.equal(found["a"], head.float())


def test_a_base_without_its_text_tower_makes_no_heads(tmp_path):
    clip = tiny_clip()
    state = {f"visual.{name}": tensor.clone() for name, tensor in clip.build().visual.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "base.safetensors")
    suite = ModelSuite("mine", clip, str(tmp_path / "base.safetensors"), MODELS)
    with pytest.raises(
        UserError, match=r"text tower is required to create heads.*missing.*Or give each model a saved"
    ):
        suite.heads()


@pytest.mark.parametrize(
    "models", [["a.safetensors", "b.safetensors"], {"a": "a.safetensors", "b": 3}, "a.yaml"]
)
def test_checkpoints_that_are_no_mapping_to_files_are_refused(models):
    with pytest.raises(UserError, match=r"Expected suite\.models to map names to files"):
        CheckpointSuite("mine", "base.safetensors", models)


def test_towers_other_than_the_known_ones_are_refused():
    with pytest.raises(UserError, match=r"Expected suite\.towers to be visual or both, got 'text'\."):
        CheckpointSuite(
            "mine", "base.safetensors", {"a": "a.safetensors", "b": "b.safetensors"}, towers="text"
        )
