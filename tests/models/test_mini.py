"""Pretraining the mini CLIP: the loss against NumPy, captions that say what is shown, and learning that shows."""

import logging
import math

import lightning
import numpy as np
import pytest
import torch

from mergeability.data.rendered.canvas import HUES
from mergeability.data.rendered.source import Rendered
from mergeability.data.rendered.subjects import SUBJECTS
from mergeability.errors import UserError
from mergeability.examples import tiny_clip
from mergeability.models import mini
from mergeability.models.zero_shot import classify, zero_shot_head
from mergeability.random import seeded_generator

SETTINGS = {"learning_rate": 5e-3, "weight_decay": 0.1, "seed": 0, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def quiet_lightning():
    """Keep what Lightning says about devices out of the test output."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def unit_rows(features: torch.Tensor) -> np.ndarray:
    rows = features.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_loss_is_the_mean_cross_entropy_of_both_directions():
    images, texts = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    loss = mini.contrastive_loss(images, texts, torch.arange(5)[:, None], torch.tensor(7.0))
    similarity = np.exp(7 * unit_rows(images) @ unit_rows(texts).T)
    towards_text = -np.log(np.diag(similarity) / similarity.sum(axis=1)).mean()
    towards_image = -np.log(np.diag(similarity) / similarity.sum(axis=0)).mean()
    assert float(loss) == pytest.approx((towards_text + towards_image) / 2, rel=1e-5)


def test_equal_captions_are_equally_right():
    images, texts = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2]])
    loss = mini.contrastive_loss(images, texts, tokens, torch.tensor(2.0))
    similarity = np.exp(2 * unit_rows(images) @ unit_rows(texts).T)
    logs = np.log(similarity / similarity.sum(axis=1, keepdims=True))
    logs_transposed = np.log(similarity.T / similarity.T.sum(axis=1, keepdims=True))
    right = np.array([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    expected = -((right * logs).sum() + (right * logs_transposed).sum()) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_captions_are_as_loose_as_documented():
    subject = SUBJECTS["shapes"]
    count = 4000
    labels = torch.arange(count) % len(subject.classes)
    hues = torch.arange(count) // 7 % len(HUES)
    written = mini.captions(subject, labels, hues, seeded_generator("test"))
    own = [subject.caption.format(subject.classes[label]) for label in labels]
    right = np.mean([phrase in caption for phrase, caption in zip(own, written, strict=True)])
    kind_only = np.mean([not any(name in caption for name in subject.classes) for caption in written])
    coloured = [caption.split(" in ")[1] for caption in written if " in " in caption]
    assert kind_only == pytest.approx(mini.NAMES_KIND_ONLY, abs=0.03)
    assert right == pytest.approx(1 - mini.NAMES_KIND_ONLY - mini.NAMES_WRONG_CLASS, abs=0.03)
    assert len(coloured) / count == pytest.approx(mini.NAMES_COLOUR, abs=0.03)
    assert len(set(written)) > 200


def test_captions_name_the_colour_that_is_shown():
    hues = torch.arange(400) % len(HUES)
    written = mini.captions(
        SUBJECTS["arrows"], torch.zeros(400, dtype=torch.int64), hues, seeded_generator("test")
    )
    for hue, caption in zip(hues.tolist(), written, strict=True):
        assert " in " not in caption or caption.endswith(f" in {list(HUES)[hue]}")


def test_pretraining_images_are_in_no_split_of_a_task(tiny_model):
    data = mini.captioned_images(tiny_model(), ["digits", "shapes"], images_per_subject=40, seed=0)
    shown = {image.numpy().tobytes() for image in data.images}
    for subject in ("digits", "shapes"):
        source = Rendered(subject, 40, 40, 40)
        for split in ("train", "validation", "test"):
            assert shown.isdisjoint(image.numpy().tobytes() for image in source.load(split).images)


def test_batches_deal_every_image_once_an_epoch_in_a_new_order():
    rows = torch.arange(10)
    images = rows[:, None, None, None].expand(10, 3, 1, 1).to(torch.uint8)
    batches = mini.Batches(mini.CaptionedImages(images, rows[:, None]), batch_size=5, seed=0)
    first, second = ([tokens.flatten().tolist() for _, tokens in batches] for _ in range(2))
    assert len(batches) == len(first) == 2
    assert sorted(first[0] + first[1]) == sorted(second[0] + second[1]) == list(range(10))
    assert first != second


def test_pretraining_beats_chance_on_images_and_sentences_it_never_saw(tiny_model):
    model = tiny_model()
    clip = mini.pretrain(model, ["colours"], steps=150, batch_size=64, images_per_subject=640, **SETTINGS)
    names = SUBJECTS["colours"].classes
    test = Rendered("colours", 1, 1, 200).load("test")
    head = zero_shot_head(clip, model.tokenize, names, ["a drawing of a {} thing"])
    with torch.no_grad():
        predicted = classify(clip.visual(model.preprocess(test.images)), head).argmax(dim=1)
    accuracy = (predicted == test.labels).float().mean()
    # Four standard errors above chance.
    chance = 1 / len(names)
    assert accuracy > chance + 4 * math.sqrt(chance * (1 - chance) / 200)


def test_pretraining_is_fixed_by_its_seed_and_trains_both_towers(tiny_model):
    def trained(seed: int) -> dict[str, torch.Tensor]:
        settings = SETTINGS | {"seed": seed}
        clip = mini.pretrain(
            tiny_model(), ["shapes"], steps=3, batch_size=8, images_per_subject=16, **settings
        )
        return clip.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    start = tiny_model().build(0).state_dict()
    for name in ("visual.conv1.weight", "token_embedding.weight", "logit_scale"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], start[name])
    assert not torch.equal(first["visual.conv1.weight"], other["visual.conv1.weight"])


def test_callbacks_see_every_step_and_the_learning_rate_ends_at_zero(tiny_model):
    rates = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    mini.pretrain(
        tiny_model(),
        ["shapes"],
        steps=20,
        batch_size=8,
        images_per_subject=16,
        callbacks=[Rates()],
        **SETTINGS,
    )
    assert len(rates) == 20
    assert max(rates) == pytest.approx(SETTINGS["learning_rate"])
    # The last rate used is one step before zero: cos at 17/18 of the way down.
    assert rates[-1] == pytest.approx(
        SETTINGS["learning_rate"] * (1 + math.cos(math.pi * 17 / 18)) / 2, rel=0.02
    )


@pytest.mark.parametrize("subjects", [[], ["shapes"]])
def test_too_few_images_for_a_batch_are_refused(subjects, tiny_model):
    with pytest.raises(UserError, match="fill a batch of 64"):
        mini.pretrain(tiny_model(), subjects, steps=1, batch_size=64, images_per_subject=10, **SETTINGS)


def test_a_pretrained_model_is_not_pretrained_again(tiny_model):
    model = tiny_model(architecture="ViT-B-16-quickgelu", pretrained="openai")
    with pytest.raises(UserError, match="has pretrained weights already"):
        mini.pretrain(model, ["shapes"], steps=1, batch_size=8, **SETTINGS)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 700])
def test_every_number_of_steps_has_a_schedule(steps):
    module = mini.ContrastivePretraining(tiny_clip(), tiny_clip().build(), 1e-3, 0.1, steps)
    prepared = module.configure_optimizers()
    schedule = prepared["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        prepared["optimizer"].step()
        if len(rates) < steps:
            schedule.step()
    assert all(math.isfinite(rate) for rate in rates)
    assert max(rates) <= 1e-3 * (1 + 1e-9)
    assert rates[-1] < 1e-3 * 0.01 or steps <= 2
