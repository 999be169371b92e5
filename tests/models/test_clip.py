"""CLIP models: built from a seed without a network, and their preprocessing and tokens against open_clip's."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from mergeability.errors import UserError
from mergeability.models.preprocessing import check_preprocessing


def test_a_seed_fixes_the_weights_and_global_random_state_is_left_alone(tiny_model):
    before = torch.random.get_rng_state()
    first, again, other = (tiny_model().build(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


def test_the_encoder_alone_is_that_of_the_whole_model(tiny_model):
    before = torch.random.get_rng_state()
    alone, whole = tiny_model().encoder_only(), tiny_model().architecture_only().visual
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(alone) is type(whole)
    assert not alone.training
    expected = whole.state_dict()
    assert list(alone.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in alone.state_dict().items())


def test_a_built_model_is_open_clips_own_in_evaluation_mode(tiny_model):
    clip = tiny_model().build()
    assert type(clip) is open_clip.CLIP
    assert not clip.training
    assert clip.visual(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


def test_a_published_architecture_builds_on_the_meta_device_from_a_seed(tiny_model):
    model = tiny_model(architecture="ViT-B-16-quickgelu")
    with torch.device("meta"):
        clip = model.build()
    assert clip.visual.conv1.weight.shape == (768, 3, 16, 16)
    assert all(parameter.is_meta for parameter in clip.parameters())
    assert isinstance(clip.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert (model.image_size, model.context_length) == (224, 77)


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (21, 43)])
def test_preprocessing_agrees_with_open_clips_transform(size, tiny_model):
    # Within 40..215 no overshoot of the bicubic filter is cut off, which Pillow does between its two passes.
    pixels = np.random.default_rng(0).integers(40, 215, (*size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    expected = open_clip.image_transform(32, is_train=False)(Image.fromarray(pixels))[None]
    # Resizing may round to the other grey level; one of 256 levels is 1 / 255 / 0.26 after normalisation.
    tolerance = 0 if size == (32, 32) else 1.5 / 255 / 0.26
    torch.testing.assert_close(tiny_model().preprocess(images), expected, atol=tolerance + 1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (50, 40), (21, 43)])
def test_preprocessing_in_two_steps_is_bit_for_bit_what_it_is_in_one(size, tiny_model):
    """What was resized once and kept must give the numbers of the image it came from."""
    model = tiny_model()
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, *size), dtype=np.uint8))
    expected = images
    if size != (32, 32):
        expected = resize(images, [32], InterpolationMode.BICUBIC, antialias=True)
        expected = center_crop(expected, [32, 32])
    kept = model.resize(images)
    assert kept.dtype == torch.uint8
    assert torch.equal(kept, expected)
    one_by_one = torch.cat([model.resize(image[None]) for image in images])
    assert torch.equal(one_by_one, kept), "an image does not depend on those beside it"
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
    assert torch.equal(model.normalise(kept), (expected.float() / 255 - mean) / std)
    assert torch.equal(model.preprocess(images), model.normalise(kept))
    assert torch.equal(model.preprocess(kept), model.preprocess(images))


def test_preprocessing_leaves_its_input_as_it_was(tiny_model):
    images = torch.full((1, 3, 32, 32), 7, dtype=torch.uint8)
    tiny_model().preprocess(images)
    assert images.unique().tolist() == [7]


def test_tokens_are_open_clips_cut_to_the_context(tiny_model):
    sentences = ["a photo of the digit three", "a " * 40]
    tokens = tiny_model().tokenize(sentences)
    assert tokens.shape == (2, 12)
    assert torch.equal(tokens[0], open_clip.tokenize(sentences[:1])[0, :12])
    # A sentence that is cut still ends with the end-of-text token, which the text tower reads its feature at.
    assert tokens[1, -1] == 49407


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ViT-Z"}, "no architecture 'ViT-Z'"),
        ({"architecture": "ViT-B-16-quickgelu", "pretrained": "nobody"}, "openai.*got 'nobody'"),
        ({"pretrained": "openai"}, "model.pretrained=null"),
    ],
)
def test_models_that_do_not_exist_are_refused(changes, message, tiny_model):
    with pytest.raises(UserError, match=message):
        tiny_model(**changes)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"head_width": 0}, r"ZeroDivisionError"),
        ({"width": "wide"}, r"TypeError"),
        ({"width": -16}, r"RuntimeError"),
    ],
)
def test_sizes_that_open_clip_cannot_build_are_one_sentence(vision, message, tiny_model):
    given = tiny_model().architecture
    model = tiny_model(architecture=given | {"vision_cfg": given["vision_cfg"] | vision})
    for build in (model.build, model.encoder_only):
        with pytest.raises(
            UserError, match=rf"open_clip cannot build model 'tiny' .*{message}.*Correct its sizes"
        ):
            build()


@pytest.mark.parametrize(
    ("described", "size"),
    [
        ({"crop_size": 24}, 24),
        ({"crop_size": {"height": 24, "width": 24}, "size": 32}, 24),
        ({"size": {"shortest_edge": 24}}, 24),
        ({"crop_size": {"width": 24}, "size": {"height": 24}}, 24),
        ({"crop_size": {"width": 24}, "size": "24"}, None),
        ({"crop_size": 32}, None),
        ({}, None),
    ],
)
def test_the_size_beside_the_weights_is_that_of_the_crop_or_else_of_the_resize(
    tmp_path, tiny_model, described, size
):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    if size is None:
        check_preprocessing(tmp_path / "model.safetensors", tiny_model())
        return
    with pytest.raises(UserError, match=f"specifies images of {size} pixels, but model=tiny uses 32"):
        check_preprocessing(tmp_path / "model.safetensors", tiny_model())


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{"image_mean": 0.5}', r"specifies image_mean=0\.5"),
        ('{"image_mean": ["a", 1, 2]}', r"specifies image_mean=\['a', 1, 2\]"),
        ('{"image_std": [0.5, 0.5]}', r"specifies image_std=\[0\.5, 0\.5\]"),
        ('{"image_std": true}', "specifies image_std=True"),
        ("[" * 200_000, "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[1]", "does not describe preprocessing"),
        ("null", "does not describe preprocessing"),
    ],
    ids=lambda text: text[:30],
)
def test_preprocessing_of_another_kind_is_one_sentence(tmp_path, tiny_model, written, message):
    (tmp_path / "preprocessor_config.json").write_text(written)
    with pytest.raises(UserError, match=message):
        check_preprocessing(tmp_path / "model.safetensors", tiny_model())


def test_preprocessing_may_begin_with_a_mark_and_hold_one_number_for_all_channels(tmp_path, tiny_model):
    model = tiny_model(mean=(0.5, 0.5, 0.5))
    content = json.dumps({"image_mean": 0.5, "crop_size": True, "size": {"height": True}})
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8-sig")
    check_preprocessing(tmp_path / "model.safetensors", model)
