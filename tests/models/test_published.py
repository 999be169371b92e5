"""Architectures and published weights: accepted where this package reads them as they were trained, refused elsewhere."""

import re
from pathlib import Path

import open_clip
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from open_clip import pretrained as tables

from mergeability.errors import UserError
from mergeability.models.clip import ClipModel
from mergeability.models.published import side

CONF = Path(__file__).parents[2] / "conf" / "model"
# Families by name: towers of timm or Hugging Face, captioning models, sigmoid losses, and other tokenizers.
NOT_PLAIN = re.compile(
    r"^(coca_|convnext_|EVA0|MobileCLIP|mt5-|nllb-|PE-Core|roberta-|swin_|vit_|ViTamin|xlm-)|SigLIP|CLIPA|worldwide"
)
PLAIN = [name for name in open_clip.list_models() if not NOT_PLAIN.search(name)]
TAGS = [(name, tag) for name in PLAIN for tag in open_clip.list_pretrained_tags_by_model(name)]


def model(architecture, pretrained=None, **changes) -> ClipModel:
    return ClipModel("mine", architecture, 1e-3, 8, pretrained, **changes)


@pytest.mark.parametrize("name", open_clip.list_models())
def test_an_architecture_is_accepted_exactly_where_it_is_a_plain_clip(name):
    if name in PLAIN:
        assert model(name).image_size > 0
        return
    with pytest.raises(UserError) as raised:
        model(name)
    sentence = str(raised.value)
    assert sentence.startswith("Model 'mine': expected a plain CLIP")
    assert f"but {name} sets " in sentence
    assert "Choose an architecture such as ViT-B-16-quickgelu" in sentence


def test_both_kinds_of_architecture_are_there():
    assert len(PLAIN) >= 42
    assert len(open_clip.list_models()) - len(PLAIN) >= 102


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"custom_text": True}, "sets custom_text"),
        ({"init_logit_bias": -10}, "sets init_logit_bias"),
        ({"multimodal_cfg": {}}, "sets multimodal_cfg"),
        ({"embed_dimension": 3}, "sets embed_dimension"),
        ({"embed_dim": None}, "lacks embed_dim"),
        ({"vision_cfg": None, "text_cfg": None}, "lacks vision_cfg, text_cfg"),
        ({"vision_cfg": 3}, "has vision_cfg=3"),
        ({"vision_cfg.timm_model_name": "resnet18"}, "sets vision_cfg.timm_model_name"),
        ({"vision_cfg.output_tokens": True}, "sets vision_cfg.output_tokens"),
        ({"vision_cfg.patchsize": 16}, "sets vision_cfg.patchsize"),
        ({"vision_cfg.image_size": [32, 48]}, r"has vision_cfg.image_size=[32, 48], not one number"),
        ({"vision_cfg.image_size": 0}, "has vision_cfg.image_size=0, not one number"),
        ({"text_cfg.hf_model_name": "roberta-base"}, "sets text_cfg.hf_model_name"),
        ({"text_cfg.hf_tokenizer_name": "bert-base-uncased"}, "sets text_cfg.hf_tokenizer_name"),
        ({"text_cfg.embed_cls": True}, "sets text_cfg.embed_cls"),
        ({"custom_text": True, "text_cfg.vocabulary": 3}, "sets custom_text, text_cfg.vocabulary"),
    ],
)
def test_a_configuration_that_is_no_plain_clip_is_refused(changes, named, tiny_model):
    configuration = {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in tiny_model().architecture.items()
    }
    for path, value in changes.items():
        part, _, name = path.partition(".")
        if name:
            configuration[part][name] = value
        else:
            configuration[part] = value
    with pytest.raises(UserError, match=re.escape(f"but model.architecture {named}")):
        model(configuration)


@pytest.mark.parametrize("wrong", [None, 3, ["ViT-B-16"]])
def test_what_is_no_architecture_at_all_is_refused(wrong):
    with pytest.raises(UserError, match=r"but model\.architecture is "):
        model(wrong)


def test_settings_that_are_off_are_no_reason(tiny_model):
    configuration = tiny_model().architecture
    off = {"vision_cfg": configuration["vision_cfg"] | {"timm_model_name": None, "output_tokens": False}}
    assert model({**configuration, **off}).build().visual.output_dim == 16


def test_every_model_that_comes_with_the_package_is_accepted():
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        for file in CONF.glob("*.yaml"):
            composed = compose("train", ["task=digits", f"model={file.stem}"])
            if composed.model._target_.endswith("TextModel"):
                continue  # tests/models/test_text.py
            assert instantiate(composed.model, _convert_="all").image_size > 0


def differing(name: str, tag: str) -> set[str]:
    """Compare a tag with its architecture by open_clip's own tables."""
    published, configuration = tables._PRETRAINED[name][tag], open_clip.get_model_config(name)
    assert configuration is not None
    differs = {
        "quick_gelu": published.get("quick_gelu", False) != configuration.get("quick_gelu", False),
        "mean": published["mean"] != open_clip.OPENAI_DATASET_MEAN,
        "std": published["std"] != open_clip.OPENAI_DATASET_STD,
        "interpolation": published["interpolation"] != "bicubic",
        "resize_mode": published["resize_mode"] != "shortest",
    }
    return {name for name, one in differs.items() if one}


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_weights_are_accepted_exactly_where_they_match_and_the_advice_helps(name, tag):
    wrong = differing(name, tag)
    if not wrong:
        assert model(name, tag).pretrained == tag
        return
    with pytest.raises(UserError) as raised:
        model(name, tag)
    sentence = str(raised.value)
    assert sentence.startswith(f"Model 'mine': the weights '{tag}' of {name} were trained with ")
    assert set(re.findall(r"(\w+)=[^()]*? \(got ", sentence)) == wrong
    advised = dict(re.findall(r"model\.(\w+)=(\S+?)(?:\.? |\.$)", sentence + " "))
    if wrong & {"interpolation", "resize_mode"}:
        assert "cannot" in sentence
        others = re.search(r"choose model\.pretrained among (.*)\.$", sentence)
        for other in others[1].split(", ") if others else []:
            assert model(name, other)
        return
    per_colour = {
        key: [float(one) for one in advised[key].strip("[]").split(",")] for key in wrong & {"mean", "std"}
    }
    assert model(advised.get("architecture", name), tag, **per_colour)


def test_every_kind_of_difference_is_there():
    kinds = [differing(name, tag) for name, tag in TAGS]
    assert kinds.count(set()) >= 67
    assert set().union(*kinds) >= {"quick_gelu", "mean", "std", "resize_mode"}
    assert differing("ViT-B-32", "openai") == {"quick_gelu"}


@pytest.mark.parametrize(
    ("published", "told"),
    [
        ({"interpolation": "bilinear"}, "interpolation=bilinear (got bicubic)"),
        ({"resize_mode": "longest"}, "resize_mode=longest (got shortest)"),
        ({"size": 336}, "image_size=336 (got 224)"),
        ({"size": (224, 336)}, "image_size=(224, 336) (got 224)"),
        ({"mode": "L"}, "mode=L (got RGB)"),
        ({"std": (1.0, 1.0, 1.0)}, "std=[1.0, 1.0, 1.0] (got [0.26862954, 0.26130258, 0.27577711])"),
        ({"quick_gelu": False}, "quick_gelu=False (got True)"),
    ],
)
def test_whatever_a_table_says_is_compared(published, told, monkeypatch):
    name = "ViT-B-16-quickgelu"
    entry = tables._PRETRAINED[name]["openai"]
    monkeypatch.setitem(tables._PRETRAINED[name], "openai", entry | published)
    with pytest.raises(UserError, match=re.escape(f"were trained with {told}.")):
        model(name, "openai")
    monkeypatch.setitem(tables._PRETRAINED[name], "openai", entry | {"size": (3, 224, 224), "mode": "RGB"})
    assert model(name, "openai")


def test_another_mean_than_the_weights_is_refused_and_none_without_weights():
    with pytest.raises(
        UserError, match=r"were trained with mean=.*got \[0\.5, 0\.5, 0\.5\].*Set model\.mean=\[0\.48145466,"
    ):
        model("ViT-B-16-quickgelu", "openai", mean=[0.5, 0.5, 0.5])
    assert model("ViT-B-16-quickgelu", mean=[0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (224, 224),
        ([24, 24], 24),
        ((24, 24), 24),
        ([24, 32], None),
        (0, None),
        (True, None),
        ("224", None),
        ([24], None),
    ],
)
def test_images_are_squares_of_one_side(size, expected):
    assert side(size) == expected
