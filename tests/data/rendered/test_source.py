"""Rendered tasks: reproducible, disjoint, balanced, neither blank nor readable off the average pixel."""

from pathlib import Path

import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from mergeability.data.rendered.glyphs import LETTERS, handwritten_digits, letter_fonts
from mergeability.data.rendered.source import Rendered, render
from mergeability.data.rendered.subjects import SUBJECTS
from mergeability.errors import UserError

TASKS = Path(__file__).parents[3] / "conf" / "task"


def rendered_configurations() -> list[dict]:
    configurations = [yaml.safe_load(path.read_text()) for path in sorted(TASKS.glob("*.yaml"))]
    return [
        task for task in configurations if task.get("source", {}).get("_target_", "").endswith(".Rendered")
    ]


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_images_are_balanced_and_all_different(subject):
    classes = len(SUBJECTS[subject].classes)
    images = Rendered(subject, train=classes * 4, validation=0, test=0).load("train")
    assert images.images.shape == (classes * 4, 3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [4] * classes
    assert len(rows(images.images)) == classes * 4


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_same_seed_gives_the_same_images_and_anything_else_other_ones(subject):
    source = Rendered(subject, train=24, validation=24, test=24)
    again = Rendered(subject, train=24, validation=24, test=24).load("train")
    assert source.load("train").fingerprint == again.fingerprint
    others = [source.load("validation"), source.load("test")]
    others += [Rendered(subject, 24, 24, 24, seed=1).load("train"), render(subject, 24, "pretraining", 0)[0]]
    streams = [again, *others]
    assert len(set().union(*(rows(images.images) for images in streams))) == 24 * len(streams)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_image_shows_its_subject(subject):
    """Ink covers a visible part of each canvas, and not all of it."""
    labels = torch.arange(60) % len(SUBJECTS[subject].classes)
    ink = SUBJECTS[subject].draw(labels, torch.Generator().manual_seed(0), "train")
    if ink.ndim == 4:  # One layer for each colour.
        ink = ink.amax(dim=1)
    assert ink.shape == (60, 32, 32)
    assert ink.min() >= 0
    assert ink.max() <= 1
    covered = ink.mean(dim=(1, 2))
    assert covered.min() > 0.005
    assert covered.max() < 0.85


def test_rendering_neither_reads_nor_moves_global_random_state():
    before = torch.random.get_rng_state()
    first = Rendered("letters", 10, 10, 10).load("train").fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert Rendered("letters", 10, 10, 10).load("train").fingerprint == first


def test_handwritten_originals_are_divided_without_overlap():
    splits = [handwritten_digits(split) for split in ("train", "validation", "test", "pretraining")]
    originals = load_digits()
    assert sum(len(values) for _, values in splits) == len(originals.target)
    distinct = len(rows(torch.from_numpy(originals.images)))
    assert len(set().union(*(rows(images) for images, _ in splits))) == distinct
    value_of = dict(zip(map(bytes, originals.images.astype("uint8")), originals.target, strict=True))
    for images, values in splits:
        for image, value in zip(images, values, strict=True):
            assert value_of[bytes((image * 16).round().to(torch.uint8).numpy())] == value


def test_letters_are_drawn_in_fonts_that_differ_and_letters_that_differ():
    fonts = letter_fonts()
    assert fonts.shape[1:] == (len(LETTERS), 28, 28)
    flat = fonts.flatten(0, 1).flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(torch.inf).min() > 1
    # M is the widest letter and so, fitted to the same square, the least tall: the glyphs keep the alphabet's order.
    heights = {
        letter: int((glyph.amax(dim=1) > 0.5).sum()) for letter, glyph in zip(LETTERS, fonts[0], strict=True)
    }
    assert min(heights, key=heights.__getitem__) == "M"
    assert torch.allclose(fonts[0, LETTERS.index("O")], fonts[0, LETTERS.index("O")].flip(1), atol=0.35)


def test_arrows_point_where_their_class_says():
    names = SUBJECTS["arrows"].classes
    labels = torch.arange(len(names)).repeat_interleave(20)
    ink = SUBJECTS["arrows"].draw(labels, torch.Generator().manual_seed(0), "train")
    ticks = torch.linspace(-1, 1, 32)
    right = torch.stack([_skewness(image.sum(dim=0), ticks) for image in ink]).view(-1, 20).mean(dim=1)
    down = torch.stack([_skewness(image.sum(dim=1), ticks) for image in ink]).view(-1, 20).mean(dim=1)
    # An arrow's head holds most of its ink, so the tail of the distribution lies the other way.
    assert right[names.index("right")] < 0 < right[names.index("left")]
    assert down[names.index("down")] < 0 < down[names.index("up")]


def _skewness(weight: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    weight = weight / weight.sum()
    centred = position - (weight * position).sum()
    return (weight * centred**3).sum()


def test_dots_are_as_many_as_their_class_says():
    from scipy.ndimage import label

    labels = torch.arange(60) % 6
    ink = SUBJECTS["dots"].draw(labels, torch.Generator().manual_seed(0), "train")
    counts = [label(image.numpy() > 0.75)[1] for image in ink]
    agreement = sum(count == wanted + 1 for count, wanted in zip(counts, labels.tolist(), strict=True))
    # Two large dots may touch.
    assert agreement >= 55


@pytest.mark.parametrize("subject", ["orientation", "frequency"])
def test_stripes_have_the_direction_and_width_of_their_class(subject):
    labels = torch.arange(60) % len(SUBJECTS[subject].classes)
    ink = SUBJECTS[subject].draw(labels, torch.Generator().manual_seed(0), "train")
    spectrum = torch.fft.fft2(ink - ink.mean(dim=(1, 2), keepdim=True), s=(128, 128)).abs()
    flat = spectrum[:, :, :64].flatten(1).argmax(dim=1)
    down, right = flat // 64, (flat % 64).float()
    down = torch.where(down >= 64, down - 128, down).float()
    if subject == "frequency":
        cycles = torch.hypot(down, right) / 4
        means = torch.stack([cycles[labels == width].mean() for width in range(5)])
        assert (means[1:] > means[:-1] * 1.2).all()
    else:
        # Stripes run at a right angle to their wave vector, which is (right, -down) with y up.
        angle = torch.rad2deg(torch.atan2(right, down)) % 180
        difference = (angle - labels * 30 + 90) % 180 - 90
        assert difference.abs().max() < 15


@pytest.mark.parametrize("task", rendered_configurations(), ids=lambda task: task["name"])
def test_the_configured_class_names_are_the_subjects_own(task):
    assert tuple(task["class_names"]) == SUBJECTS[task["source"]["subject"]].classes


def test_every_subject_has_a_task():
    assert {task["name"] for task in rendered_configurations()} == set(SUBJECTS)
    assert len(SUBJECTS) == 20


def test_an_unknown_subject_and_a_negative_count_are_refused():
    with pytest.raises(UserError, match=r"digits, letters.*got 'ducks'"):
        Rendered("ducks", 1, 1, 1)
    with pytest.raises(UserError, match="expected test >= 0"):
        Rendered("digits", 1, 1, -1)
