"""Base models: from a file with both towers under any known names, from a seed, and never one for the other."""

import json
import logging

import open_clip
import pytest
import safetensors.torch
import torch
import transformers
from hydra.utils import instantiate

from mergeability.errors import UserError
from mergeability.models.base import check_origin, fetch_base, load_base, pretrain_base
from mergeability.models.clip import ClipModel

WIDTH, TEXT_WIDTH, EMBEDDING, VOCABULARY, CONTEXT = 32, 16, 8, 60, 12
ARCHITECTURE = {
    "embed_dim": EMBEDDING,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": 2, "head_width": 8},
    "text_cfg": {
        "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": TEXT_WIDTH, "heads": 2, "layers": 3,
    },
}  # fmt: skip


def model(**changes) -> ClipModel:
    fields = {"name": "tiny", "architecture": ARCHITECTURE, "learning_rate": 1e-3, "batch_size": 8}
    return ClipModel(**fields | changes)


@pytest.fixture(scope="module")
def theirs() -> transformers.CLIPModel:
    """A whole CLIP of transformers' own making, no parameter of which is zero or one."""
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8, "projection_dim": EMBEDDING,
    }  # fmt: skip
    text = {
        "hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
        "projection_dim": EMBEDDING, "bos_token_id": 57, "eos_token_id": 59, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=EMBEDDING)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = transformers.CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
    return clip


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def features(theirs, images, tokens):
    """What transformers computes, before normalisation."""
    pooled = theirs.vision_model(pixel_values=images).pooler_output
    text = theirs.text_model(input_ids=tokens).pooler_output
    return theirs.visual_projection(pooled), theirs.text_projection(text)


def assert_same_logits(clip, theirs):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 50, (4, CONTEXT), generator=generator)
    tokens[:, -1] = 59  # the end of text: the largest token to open_clip, eos_token_id to transformers
    with torch.inference_mode():
        image, text = features(theirs, images, tokens)
        torch.testing.assert_close(clip.encode_image(images), image, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clip.encode_text(tokens), text, atol=1e-5, rtol=1e-5)
        # The logits of CLIP itself, scale included.
        expected = theirs(input_ids=tokens, pixel_values=images).logits_per_image
        image, text, scale = clip(images, tokens)
        torch.testing.assert_close(scale * image @ text.T, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", ["folder", "safetensors", "wrapped", "bin", "older"])
def test_both_towers_of_transformers_compute_the_same_here(folder, theirs, form):
    source = folder
    state = safetensors.torch.load_file(folder / "model.safetensors")
    if form == "safetensors":
        source = folder / "model.safetensors"
    elif form == "wrapped":
        source = folder.parent / "wrapped.safetensors"
        safetensors.torch.save_file({f"module.{name}": value for name, value in state.items()}, source)
    elif form == "bin":
        source = folder.parent / "clip.bin"
        torch.save(state, source)
    elif form == "older":
        source = folder.parent / "older.safetensors"
        positions = {
            f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")
        }
        safetensors.torch.save_file(state | positions, source)
    clip = model(pretrained=str(source)).build()
    assert_same_logits(clip, theirs)
    assert not clip.training


@pytest.mark.parametrize("wrapper", ["", "model.", "module."])
def test_both_towers_of_open_clip_come_back_bit_by_bit(tmp_path, wrapper):
    clip = model().build(seed=3)
    constants = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(CONTEXT)}
    state = {wrapper + name: value.half() for name, value in clip.state_dict().items()} | constants
    torch.save(state, tmp_path / "clip.pt")
    found = model(pretrained=str(tmp_path / "clip.pt")).build().state_dict()
    assert found.keys() == clip.state_dict().keys()
    assert all(torch.equal(found[name], value.half().float()) for name, value in clip.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("text_projection.weight"), r"missing \(1\): text_projection.weight"),
        (lambda s: s.pop("text_model.encoder.layers.1.mlp.fc1.bias"), "missing .*layers.1.mlp.fc1.bias"),
        (
            lambda s: s.update({"text_model.adapter": torch.ones(2)}),
            r"not understood \(1\): text_model.adapter",
        ),
        (lambda s: s.pop("visual_projection.weight"), r"missing \(1\): visual.proj"),
        (lambda s: s.update({"logit_scale": torch.ones(2)}), r"logit_scale \(2,\) instead of \(\)"),
        (lambda s: s.update({"logit_scale": torch.tensor(torch.nan)}), "NaN or Inf in logit_scale"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("text")], "whole CLIPModel"),
    ],
)
def test_what_does_not_fit_is_listed(folder, tmp_path, change, message):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=message):
        model(pretrained=str(tmp_path / "clip.safetensors")).build()


def test_a_left_over_name_of_open_clip_is_listed(tmp_path):
    state = model().build().state_dict() | {"visual.head.weight": torch.ones(2)}
    safetensors.torch.save_file(
        {n: v.contiguous().clone() for n, v in state.items()}, tmp_path / "clip.safetensors"
    )
    with pytest.raises(UserError, match=r"left over \(1\): visual.head.weight"):
        model(pretrained=str(tmp_path / "clip.safetensors")).build()


def test_another_activation_beside_the_weights_is_noticed(folder):
    with pytest.raises(UserError, match="specifies hidden_act=quick_gelu, but model=tiny uses gelu"):
        model(architecture=ARCHITECTURE | {"quick_gelu": False}, pretrained=str(folder)).build()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"specifies hidden_act=gelu, .* without '-quickgelu'"):
        model(pretrained=str(folder)).build()


def test_a_base_is_kept_and_never_passes_for_another(folder, tmp_path, caplog):
    real, random = model(pretrained=str(folder)), model()
    card = fetch_base(tmp_path / "base", real)
    assert card["settings"]["pretrained"] == "file"
    kept = load_base(tmp_path / "base", random).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in real.build().state_dict().items())
    check_origin(tmp_path / "base", card, real)
    with pytest.raises(UserError, match=r"with pretrained=file.*another model.name"):
        check_origin(tmp_path / "base", card, random)
    with caplog.at_level(logging.WARNING):
        card = fetch_base(tmp_path / "random", random)
    assert "random weights" in caplog.text
    assert card["settings"] == {"pretrained": None}
    with pytest.raises(UserError, match="with pretrained=None"):
        check_origin(tmp_path / "random", card, real)
    check_origin(tmp_path / "mini", {"settings": {"training": {}}}, random)


def test_a_base_that_is_missing_or_of_another_architecture_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"No base model at .*model\.safetensors\. Run train\.py"):
        load_base(tmp_path / "base", model())
    fetch_base(tmp_path / "base", model())
    narrow = ARCHITECTURE | {"embed_dim": EMBEDDING + 1}
    # Both towers project to the embedding.
    with pytest.raises(
        UserError, match=r"does not fit model=tiny: 2 tensors differ, such as 'text_projection'"
    ):
        load_base(tmp_path / "base", model(architecture=narrow))
    text = ARCHITECTURE["text_cfg"]
    deeper = ARCHITECTURE | {"text_cfg": text | {"layers": text["layers"] + 1}}
    with pytest.raises(
        UserError, match=r"12 tensors differ, such as 'transformer\.resblocks\.3\.attn\.in_proj_bias'"
    ):
        load_base(tmp_path / "base", model(architecture=deeper))


def published(**changes) -> ClipModel:
    return model(architecture="ViT-B-32-quickgelu", pretrained="openai", **changes)


def test_published_weights_are_those_that_open_clip_loads(monkeypatch):
    asked, network = [], torch.nn.Linear(2, 2)

    def create_model(architecture, pretrained):
        asked.append((architecture, pretrained))
        return network

    monkeypatch.setattr("open_clip.create_model", create_model)
    assert published().build() is network
    assert not network.training
    assert asked == [("ViT-B-32-quickgelu", "openai")]


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Failed to download")])
def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch, tmp_path, error):
    def create_model(architecture, pretrained):
        raise error

    monkeypatch.setattr("open_clip.create_model", create_model)
    message = rf"Cannot fetch the weights 'openai' of tiny \({type(error).__name__}\).*requires a network connection"
    with pytest.raises(UserError, match=message):
        fetch_base(tmp_path / "base", published())
    assert not (tmp_path / "base").exists()


def test_weights_that_do_not_fit_are_refused_in_their_own_sentence(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors does not fit model=tiny: missing"):
        fetch_base(tmp_path / "base", model(pretrained=str(tmp_path / "other.safetensors")))


def test_an_interrupted_pretraining_is_an_interrupt_and_writes_nothing(tmp_path):
    def pretrain(clip, *, logger, callbacks, accelerator):
        assert (logger, callbacks, accelerator) == (["csv"], ["progress"], "cpu")
        raise SystemExit(1)

    options = {"loggers": ["csv"], "callbacks": [None, "progress"], "accelerator": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        pretrain_base(tmp_path / "base", model(), pretrain, **options)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("name", "width", "patch", "blocks", "embedding"),
    [("vit_b32", 768, 32, 12, 512), ("vit_b16", 768, 16, 12, 512), ("vit_l14", 1024, 14, 24, 768)],
)
def test_published_transformers_have_their_sizes_and_the_activation_of_openais_weights(
    name, width, patch, blocks, embedding
):
    published = configured(name)
    assert published.pretrained == "openai"
    with torch.device("meta"):
        clip = published.architecture_only()
    assert tuple(clip.visual.conv1.weight.shape) == (width, 3, patch, patch)
    assert len(clip.visual.transformer.resblocks) == blocks
    assert tuple(clip.visual.proj.shape) == (width, embedding)
    for tower in (clip.visual.transformer, clip.transformer):
        kinds = {type(block.mlp.gelu) for block in tower.resblocks}
        assert kinds == {open_clip.transformer.QuickGELU}


def test_the_published_resnet_has_batch_norms_and_quick_gelu_in_its_text_tower():
    with torch.device("meta"):
        clip = configured("rn50").architecture_only()
    assert tuple(clip.visual.conv1.weight.shape) == (32, 3, 3, 3)
    assert "layer4.2.bn3.running_var" in clip.visual.state_dict()
    assert tuple(clip.visual.attnpool.c_proj.weight.shape) == (1024, 2048)
    assert {type(block.mlp.gelu) for block in clip.transformer.resblocks} == {open_clip.transformer.QuickGELU}


def configured(name: str) -> ClipModel:
    from pathlib import Path

    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        return instantiate(compose("train", [f"model={name}"]).model, _convert_="all")
