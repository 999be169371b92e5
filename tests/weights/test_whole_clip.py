"""Both towers of a CLIP from a file: the configuration beside it must name the activation of the architecture."""

import json

import pytest
import torch

from mergeability.errors import UserError
from mergeability.examples import tiny_clip
from mergeability.weights import checkpoints
from mergeability.weights.whole_clip import clip_weights


@pytest.fixture(scope="module")
def clip():
    return tiny_clip().build()


@pytest.fixture
def folder(tmp_path, clip):
    checkpoints.save(tmp_path / "model.safetensors", clip.state_dict())
    return tmp_path


def test_a_configuration_that_is_no_json_is_named(folder, clip):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON .*Download it again"):
        clip_weights(clip, str(folder), "tiny", quick_gelu=False)


@pytest.mark.parametrize(
    "described", [[1], {}, {"model_type": "bert"}, {"model_type": "clip", "hidden_act": "gelu"}]
)
def test_a_configuration_of_another_model_or_of_this_activation_changes_nothing(folder, clip, described):
    (folder / "config.json").write_text(json.dumps(described))
    found = clip_weights(clip, str(folder), "tiny", quick_gelu=False)
    expected = clip.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("text", [{"text_config": {"hidden_act": "quick_gelu"}}, {"text_config": {}}, {}])
def test_another_activation_of_either_tower_is_refused(folder, clip, text):
    vision = {"vision_config": {"hidden_act": "gelu"}} if text else {}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | vision | text))
    with pytest.raises(
        UserError, match=r"hidden_act=quick_gelu, but model=tiny uses gelu: choose .* with '-quickgelu'"
    ):
        clip_weights(clip, str(folder), "tiny", quick_gelu=False)
