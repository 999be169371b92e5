"""Exported encoders: transformers loads them and computes what open_clip computes, and they come back bit by bit."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

from mergeability.errors import UserError
from mergeability.models.clip import ClipModel
from mergeability.weights import checkpoints, hugging_face
from mergeability.weights.checkpoints import Checkpoint

GOLDEN = Path(__file__).parent.parent / "golden"

# Every size differs from every other one, so that no two of them can be mixed up.
WIDTH, HEADS, HIDDEN, EMBEDDING, PATCH, SIDE, BLOCKS = 32, 4, 96, 12, 8, 24, 2


def configuration(quick_gelu=True, **vision):
    vision_cfg = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": BLOCKS,
        "head_width": WIDTH // HEADS,
        "mlp_ratio": HIDDEN / WIDTH,
    }
    text_cfg = {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    return {
        "embed_dim": EMBEDDING,
        "quick_gelu": quick_gelu,
        "vision_cfg": vision_cfg | vision,
        "text_cfg": text_cfg,
    }


def random_clip(settings):
    """Build a CLIP no parameter of which is left at zero or one, as open_clip leaves biases and norms."""
    clip = ClipModel("tiny", settings, learning_rate=1e-3, batch_size=8).build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.visual.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return clip


def canonical(clip, dtype=torch.float32):
    return {f"visual.{name}": tensor.to(dtype) for name, tensor in clip.visual.state_dict().items()}


@pytest.fixture(scope="module")
def clip():
    return random_clip(configuration())


@pytest.fixture(scope="module")
def tensors(clip):
    return canonical(clip)


def export(folder, tensors, settings):
    checkpoints.save(folder / "model.safetensors", hugging_face.renamed(tensors))
    config = hugging_face.vision_config(settings, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def loaded(folder, kind=transformers.CLIPVisionModelWithProjection):
    """Load with the installed transformers, which must not miss, drop or resize anything."""
    model, report = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert {fault: list(names) for fault, names in report.items() if names} == {}
    return model


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_transformers_computes_what_open_clip_computes(tmp_path, quick_gelu):
    clip = random_clip(configuration(quick_gelu))
    export(tmp_path, canonical(clip), configuration(quick_gelu))
    images = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    other = random_clip(configuration(not quick_gelu))
    with torch.inference_mode():
        embedded = loaded(tmp_path)(pixel_values=images).image_embeds
        torch.testing.assert_close(embedded, clip.encode_image(images), atol=1e-5, rtol=1e-5)
        # The two activations are far enough apart for this to be seen.
        assert (other.encode_image(images) - embedded).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"mlp_ratio": 4.9231}, {"intermediate_size": 157}),
        ({"head_width": 16}, {"num_attention_heads": 2}),
        ({"norm_kwargs": {"eps": 1e-2}}, {"layer_norm_eps": 1e-2}),
        ({"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}, {"image_size": 24, "patch_size": 8}),
        ({"patch_dropout": 0.5, "final_ln_after_pool": True, "timm_pool": "avg"}, {}),
        ({"pos_embed_type": "sin_cos_2d", "act_kwargs": {}, "block_type": "default"}, {}),
    ],
)
def test_settings_that_transformers_shares_are_kept_and_those_without_effect_ignored(tmp_path, vision, said):
    settings = configuration(**vision)
    clip = random_clip(settings)
    tensors = canonical(clip)
    export(tmp_path, tensors, settings)
    config = hugging_face.vision_config(settings, tensors)
    assert {name: config[name] for name in said} == said
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embedded = loaded(tmp_path)(pixel_values=images).image_embeds
        torch.testing.assert_close(embedded, clip.encode_image(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_exported_weights_come_back_bit_by_bit_and_open_clip_loads_them(tmp_path, clip, dtype):
    tensors = canonical(clip, dtype)
    checkpoint = Checkpoint.open(export(tmp_path, tensors, configuration()))
    assert set(checkpoint.names) == set(tensors)
    assert set(checkpoint.dtypes.values()) == {dtype}
    found = checkpoint.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    other = ClipModel("tiny", configuration(), learning_rate=1e-3, batch_size=8).build(seed=5).to(dtype)
    other.visual.load_state_dict(
        {name.removeprefix("visual."): tensor for name, tensor in found.items()}, strict=True
    )
    assert all(torch.equal(canonical(other, dtype)[name], tensor) for name, tensor in tensors.items())


def test_what_the_installed_transformers_saves_itself_is_read_back(tmp_path, tensors):
    export(tmp_path, tensors, configuration())
    loaded(tmp_path).save_pretrained(tmp_path / "again")
    found = Checkpoint.open(tmp_path / "again" / "model.safetensors").state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", ["base", "task2"])
def test_golden_checkpoints_are_renamed_and_split(tmp_path, name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    renamed = hugging_face.renamed({key: torch.from_numpy(value) for key, value in golden.items()})
    layer = "vision_model.encoder.layers.1."
    block = "visual.transformer.resblocks.1."
    for position, part in enumerate("qkv"):
        for kind in ("weight", "bias"):
            fused = golden[f"{block}attn.in_proj_{kind}"]
            rows = len(fused) // 3
            expected = fused[position * rows : (position + 1) * rows]
            np.testing.assert_array_equal(renamed[f"{layer}self_attn.{part}_proj.{kind}"], expected)
    np.testing.assert_array_equal(renamed["visual_projection.weight"], golden["visual.proj"].T)
    np.testing.assert_array_equal(renamed[f"{layer}mlp.fc2.weight"], golden[f"{block}mlp.c_proj.weight"])
    found = Checkpoint.open(checkpoints.save(tmp_path / "m.safetensors", renamed)).state_dict()
    assert found.keys() == golden.keys()
    assert all(np.array_equal(found[key], value) for key, value in golden.items())


def test_a_tower_without_its_projection_is_a_plain_vision_model(tmp_path, clip, tensors):
    tower = {name: tensor for name, tensor in tensors.items() if name != "visual.proj"}
    export(tmp_path, tower, configuration())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["CLIPVisionModel"]
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pooled = loaded(tmp_path, transformers.CLIPVisionModel)(pixel_values=images).pooler_output
        expected = clip.encode_image(images)
        torch.testing.assert_close(pooled @ tensors["visual.proj"], expected, atol=1e-5, rtol=1e-5)


def test_renaming_copies_nothing_and_leaves_its_input_alone(tensors):
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    renamed = hugging_face.renamed(tensors)
    weight = renamed["vision_model.encoder.layers.0.mlp.fc1.weight"]
    assert weight.data_ptr() == tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].data_ptr()
    assert all(torch.equal(tensors[name], value) for name, value in before.items())


# As published by the authors of these models: hidden, intermediate, layers, heads, patch, projection, activation.
PUBLISHED = {
    "ViT-B-32-quickgelu": (768, 3072, 12, 12, 32, 512, "quick_gelu"),
    "ViT-B-16-quickgelu": (768, 3072, 12, 12, 16, 512, "quick_gelu"),
    "ViT-B-16": (768, 3072, 12, 12, 16, 512, "gelu"),
    "ViT-L-14-quickgelu": (1024, 4096, 24, 16, 14, 768, "quick_gelu"),
    "ViT-H-14": (1280, 5120, 32, 16, 14, 1024, "gelu"),
    "ViT-bigG-14": (1664, 8192, 48, 16, 14, 1280, "gelu"),
}


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_published_architectures_get_the_configuration_they_have_on_the_hub(architecture):
    settings = open_clip.get_model_config(architecture)
    with torch.device("meta"):
        clip = open_clip.CLIP(**settings)
        config = hugging_face.vision_config(settings, canonical(clip))
        expected = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    keys += ("projection_dim", "hidden_act")
    assert tuple(config[key] for key in keys) == PUBLISHED[architecture]
    assert (config["image_size"], config["layer_norm_eps"]) == (224, 1e-5)
    shapes = {name: tensor.shape for name, tensor in hugging_face.renamed(canonical(clip)).items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}


@pytest.mark.parametrize(
    ("dtypes", "name"),
    [
        ((torch.float32,), "float32"),
        ((torch.float16,), "float16"),
        ((torch.bfloat16,), "bfloat16"),
        ((torch.float16, torch.bfloat16), "float32"),
        ((torch.float32, torch.float16), "float32"),
    ],
)
def test_weights_are_loaded_in_a_dtype_that_holds_them_all(tmp_path, tensors, dtypes, name):
    kept = {
        key: tensor.to(dtypes[index % len(dtypes)]) for index, (key, tensor) in enumerate(tensors.items())
    }
    export(tmp_path, kept, configuration())
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == name
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path, torch_dtype="auto", local_files_only=True
    )
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{name}"}


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"attentional_pool": True}, "attentional_pool=True"),
        ({"no_ln_pre": True}, "no_ln_pre=True"),
        ({"pool_type": "avg"}, "pool_type='avg'"),
        ({"ls_init_value": 1e-4}, "ls_init_value=0.0001"),
        ({"act_kwargs": {"approximate": "tanh"}}, "act_kwargs=.*tanh"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"block_type": "custom"}, "block_type='custom'"),
        ({"timm_model_name": "vit_base"}, "timm_model_name='vit_base'"),
        ({"register_tokens": 4}, "register_tokens=4"),
        ({"layers": [3, 4, 6, 3]}, r"does not support ResNets, but layers=\[3, 4, 6, 3\] describes a ResNet"),
        ({"norm_kwargs": {"elementwise_affine": False}}, "elementwise_affine"),
        ({"image_size": [24, 32]}, r"square images and patches, but image_size is \(24, 32\)"),
        ({"head_width": 5}, "a width of 32 and a head_width of 5"),
        ({"head_width": 64}, "a width of 32 and a head_width of 64"),
    ],
)
def test_settings_that_transformers_cannot_express_are_named(tensors, vision, message):
    with pytest.raises(UserError, match=f"{message}.*Remove export=hf"):
        hugging_face.vision_config(configuration(**vision), tensors)


@pytest.mark.parametrize("given", [{}, {"embed_dim": 4, "text_cfg": {}}, {"vision_cfg": {"width": 4}}])
def test_a_configuration_without_a_visual_tower_is_refused(tensors, given):
    with pytest.raises(UserError, match="with embed_dim and vision_cfg, got"):
        hugging_face.vision_config(given, tensors)


@pytest.mark.parametrize(
    ("vision", "name"),
    [
        ({"layers": BLOCKS + 1}, "layers.2.mlp.fc1"),
        ({"layers": BLOCKS - 1}, "layers.1.mlp.fc1"),
        ({"patch_size": 4}, "patch_embedding"),
        ({"width": 64}, "patch_embedding"),
        ({"image_size": 32}, "position_embedding"),
        ({"mlp_ratio": 4.0}, "layers.1.mlp.fc1"),
    ],
)
def test_a_configuration_of_another_encoder_is_refused(tensors, vision, name):
    with pytest.raises(UserError, match=f"requires .*{name}.*the configuration of this encoder"):
        hugging_face.vision_config(configuration(**vision), tensors)


def test_another_embedding_is_noticed_and_what_open_clip_assumes_is_assumed(tensors):
    with pytest.raises(UserError, match=r"visual_projection.weight' to be \(13, 32\).*it is \(12, 32\)"):
        hugging_face.vision_config(configuration() | {"embed_dim": 13}, tensors)
    # A tower of which nothing is said is open_clip's ViT-B/16.
    with pytest.raises(UserError, match=r"\(768, 3, 16, 16\)"):
        hugging_face.vision_config({"embed_dim": EMBEDDING, "vision_cfg": {}}, tensors)


def resnet():
    with torch.device("meta"):
        return canonical(open_clip.CLIP(**open_clip.get_model_config("RN50")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: resnet(), "visual.attnpool"),
        (lambda tensors: tensors | {"visual.attn_pool.query": torch.ones(2)}, "visual.attn_pool.query"),
        (lambda tensors: tensors | {"logit_scale": torch.ones(())}, r"not understood \(1\): logit_scale"),
        (
            lambda tensors: {name: tensors[name] for name in tensors if "ln_pre" not in name},
            r"missing \(2\): visual.ln_pre.bias, visual.ln_pre.weight",
        ),
        (
            lambda tensors: {name: tensors[name] for name in tensors if ".1.attn.in_proj_bias" not in name},
            r"missing \(1\): visual.transformer.resblocks.1.attn.in_proj_bias",
        ),
        (lambda _: {"layer.weight": torch.ones(2, 2)}, "not understood .1.: layer.weight"),
        (lambda _: {}, "missing"),
        (
            lambda tensors: tensors | {"visual.transformer.resblocks.0.attn.in_proj_bias": torch.ones(95)},
            r"in_proj_bias' to be 3 parts of one size, got the shape \(95,\)",
        ),
        (lambda tensors: tensors | {"visual.proj": torch.ones(4)}, r"a matrix, got the shape \(4,\)"),
    ],
)
def test_what_is_not_the_visual_transformer_of_a_clip_is_refused(tensors, change, message):
    with pytest.raises(UserError, match=f"{message}.*Remove export=hf"):
        hugging_face.renamed(change(tensors))


@pytest.mark.parametrize("size", [(24, 24), (50, 70), (21, 43), (64, 31)])
@pytest.mark.parametrize("normalisation", ["published", "other"])
def test_the_image_processor_prepares_images_as_the_model_does(tmp_path, size, normalisation):
    statistics = {} if normalisation == "published" else {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.5)}
    model = ClipModel("tiny", configuration(), learning_rate=1e-3, batch_size=8, **statistics)
    config = hugging_face.preprocessor_config(model.image_size, model.mean, model.std)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    # Within 40..215 no overshoot of the bicubic filter is cut off, which Pillow does between its two passes.
    pixels = np.random.default_rng(0).integers(40, 215, (*size, 3), dtype=np.uint8)
    found = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    expected = model.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    # The model resizes in floating point, the processor in integers: to the next of 256 grey levels.
    levels = 0 if size == (SIDE, SIDE) else 1
    difference = (found - expected).abs() * torch.tensor(model.std)[:, None, None] * 255
    assert difference.max() <= levels + 1e-3
