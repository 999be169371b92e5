"""The subjects that came with suite mini20 show what their labels say, by witnesses that know nothing of the drawing."""

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import pdist

from mergeability.data.rendered.source import render
from mergeability.data.rendered.subjects import SUBJECTS

IMAGES = 120


def drawn(subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ink and the labels of some images of every class."""
    labels = torch.arange(IMAGES) % len(SUBJECTS[subject].classes)
    ink = SUBJECTS[subject].draw(labels, torch.Generator().manual_seed(0), "train")
    return ink.numpy(), labels.numpy()


def regions(mask: np.ndarray) -> int:
    return ndimage.label(mask)[1]


def holes(image: np.ndarray) -> int:
    """Count the parts of the ground that ink encloses."""
    return regions(np.pad(image, 1) < 0.5) - 1


def share(found, wanted) -> float:
    return float(np.mean(np.asarray(found) == np.asarray(wanted)))


def test_buttons_have_as_many_holes_as_their_class_says():
    ink, labels = drawn("buttons")
    assert share([holes(image) for image in ink], labels) > 0.98


def test_palettes_have_as_many_colours_as_their_class_says():
    """Hues of spots in the painted images: those of one colour are alike, those of two lie far apart."""
    images, _ = render("palette", IMAGES, "train", 0, clutter=0.0)
    found, spots = [], []
    for image in images.images.permute(0, 2, 3, 1).numpy() / 255:
        # Without clutter, the ground is dark and subjects are light.
        parts, count = ndimage.label(ndimage.binary_opening(image.max(axis=-1) > 0.55))
        means = [image[parts == part].mean(axis=0) for part in range(1, count + 1)]
        hues = np.sort([colorsys.rgb_to_hsv(*mean)[0] for mean in means])
        gaps = np.diff(np.append(hues, hues[0] + 1))
        found.append(max(1, int((gaps > 0.12).sum())))
        spots.append(count)
    wanted = images.labels.numpy() + 1
    assert share(found, wanted) > 0.9
    assert set(spots) >= {6, 7}
    by_class = [np.mean(np.array(spots)[wanted == colours]) for colours in range(1, 5)]
    assert np.ptp(by_class) < 0.5, "the number of spots says nothing about the number of colours"


def test_rings_lie_to_each_other_as_their_class_says():
    ink, labels = drawn("loops")
    names = np.array(SUBJECTS["loops"].classes)[labels]
    counts = np.array([holes(image) for image in ink])
    filled = np.array([regions(ndimage.binary_fill_holes(image > 0.4)) for image in ink])
    assert share(counts >= 3, names == "linked") > 0.95
    assert share(filled == 2, names == "apart") > 0.95
    # Concentric rings have the same centre: the outer region's, and that of what it encloses.
    offsets = []
    for image in ink:
        parts, _ = ndimage.label(image > 0.4)
        sizes = np.bincount(parts.ravel())[1:]
        centres = np.array(ndimage.center_of_mass(image > 0.4, parts, 1 + np.argsort(sizes)))
        offsets.append(np.hypot(*(centres[0] - centres[-1])))
    offsets = np.array(offsets)
    assert offsets[names == "concentric"].max() < 1.5 < 2 < offsets[names == "nested"].min()


def test_mosaics_are_mirrored_along_the_axes_that_their_class_says():
    ink, labels = drawn("mirrors")
    names = np.array(SUBJECTS["mirrors"].classes)[labels]

    def alike(axis: int) -> np.ndarray:
        """Return the best correlation of each image with its mirror image, over all places of the axis."""
        # Smoothed, since the mosaics are turned a little.
        smooth = ndimage.gaussian_filter(ink, (0, 1, 1))
        centred = smooth - smooth.mean(axis=(1, 2), keepdims=True)
        first, second = (np.fft.fft(images, 64, axis=axis) for images in (centred, np.flip(centred, axis)))
        products = np.fft.ifft(first * second.conj(), axis=axis).real.sum(axis=3 - axis).max(axis=1)
        return products / (centred**2).sum(axis=(1, 2))

    sideways, upright = alike(2) > 0.74, alike(1) > 0.74
    assert share(sideways, np.isin(names, ["left to right", "both ways"])) > 0.95
    assert share(upright, np.isin(names, ["top to bottom", "both ways"])) > 0.95


def test_the_left_thing_is_as_large_as_its_class_says():
    ink, labels = drawn("sizes")
    widths = []
    for image in ink:
        parts, count = ndimage.label(image > 0.5)
        assert count == 2
        left, right = sorted(ndimage.find_objects(parts), key=lambda box: box[1].start)
        widths.append((left[1].stop - left[1].start) / (right[1].stop - right[1].start))
    nearest = np.abs(np.log(np.array(widths))[:, None] - np.log([0.4, 0.64, 1, 1.56, 2.5])).argmin(axis=1)
    assert share(nearest, labels) > 0.9


def test_the_shape_in_front_is_whole():
    """Area over squared diameter tells a whole circle, square and triangle apart: π/4, 1/2 and √3/4 before pixels."""
    ink, labels = drawn("covers")
    fronts = [name.split()[0] for name in SUBJECTS["covers"].classes]
    ideal = {"circle": 0.7, "square": 1 / 2, "triangle": 3**0.5 / 4}
    whole = []
    for image, label in zip(ink, labels, strict=True):
        parts, count = ndimage.label(image > 0.5)
        ratios = []
        for part in range(1, count + 1):
            inside = parts == part
            if inside.sum() < 8:
                continue  # A corner that looks out from behind.
            # From pixel centre to pixel centre a pixel is missing.
            ratios.append(image[inside].sum() / (pdist(np.argwhere(inside)).max() + 1) ** 2)
        whole.append(min(abs(ratio - ideal[fronts[label]]) for ratio in ratios) < 0.06)
        if fronts[label] != "circle":
            assert max(ratios) < 0.64, "no circle is whole"
    assert np.mean(whole) > 0.95


def test_noise_is_of_the_kind_that_its_class_says():
    ink, labels = drawn("noise")
    names = np.array(SUBJECTS["noise"].classes)[labels]
    centred = ink - ink.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centred, s=(64, 64))) ** 2
    correlation = np.fft.ifft2(power).real
    correlation = correlation / correlation[:, :1, :1]
    directions = np.linspace(0, np.pi, 12, endpoint=False)
    down, right = (np.round(4 * f(directions)).astype(int) % 64 for f in (np.sin, np.cos))
    around = correlation[:, down, right]
    adjacent = (correlation[:, 0, 1] + correlation[:, 1, 0]) / 2
    steps = np.abs(np.diff(ink, axis=2))
    even = (steps < 1e-6).mean(axis=(1, 2))
    parts = np.array([regions(image > 0.25) for image in ink])
    assert adjacent[names == "grain"].max() < 0.2 < adjacent[names != "grain"].min()
    assert around.min(axis=1)[names == "clouds"].mean() > 0.1
    assert np.ptp(around, axis=1)[names == "streaks"].min() > np.ptp(around, axis=1)[names == "clouds"].mean()
    assert even[names == "tiles"].min() > 0.3 > even[np.isin(names, ["grain", "clouds", "streaks"])].max()
    assert parts[names == "specks"].min() > 10
    assert parts[names == "scratches"].mean() < 6, "lines cross"


def test_strokes_close_as_often_as_their_class_says():
    ink, labels = drawn("strokes")
    names = np.array(SUBJECTS["strokes"].classes)[labels]
    counts = np.array([holes(image) for image in ink])
    wanted = np.select([names == "loop", names == "eight"], [1, 2], 0)
    # Wide pens close narrow turns of a spiral, and fill small loops.
    assert share(counts, wanted) > 0.85
    assert share([regions(image > 0.4) for image in ink], 1) > 0.97
    # Sharp or many turns leave more ink for the width of the pen; of an arch and a hook there is least.
    spread = np.array([image.sum() / ndimage.distance_transform_edt(image > 0.5).max() for image in ink])
    means = {name: spread[names == name].mean() for name in SUBJECTS["strokes"].classes}
    assert means["spiral"] > means["eight"] > means["arch"]
    assert means["zigzag"] > means["wave"] > means["hook"]


@pytest.mark.parametrize("subject", ["buttons", "covers", "loops", "mirrors", "palette", "sizes", "strokes"])
def test_neither_the_amount_of_ink_nor_its_place_gives_the_class_away(subject):
    """The centre of the ink wanders more within a class than between the classes."""
    ink, labels = drawn(subject)
    ink = ink if ink.ndim == 3 else ink.max(axis=1)
    ticks = np.arange(32) - 15.5
    total = ink.sum(axis=(1, 2))
    for centre in (ink.sum(axis=1) @ ticks / total, ink.sum(axis=2) @ ticks / total):
        means = [centre[labels == label].mean() for label in np.unique(labels)]
        within = np.mean([centre[labels == label].std() for label in np.unique(labels)])
        assert np.std(means) < (6 if subject == "sizes" else 1) * within
