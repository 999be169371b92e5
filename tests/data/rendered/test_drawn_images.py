"""Every subject's images are pinned: who draws in another way must say so in `rendered._VERSION`.

New pins: `python tests/data/rendered/test_drawn_images.py` from the project's root.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mergeability.data.rendered import source as rendered
from mergeability.data.rendered.source import Rendered
from mergeability.data.rendered.subjects import SUBJECTS

PINS = Path(__file__).parent / "drawn_images.json"
PINNED = json.loads(PINS.read_text()) if PINS.is_file() else {}
# Another processor rounds a pixel to the other side now and then, which moves the mean of 64 pixels by 1/64.
TOLERANCE = 0.1


def drawn(subject: str):
    return Rendered(subject, train=16, validation=0, test=0).load("train")


def block_means(subject: str) -> np.ndarray:
    """Return the means of the sixteen 8×8 blocks of each image's channels."""
    images = drawn(subject).images.numpy().astype(float)
    return images.reshape(16, 3, 4, 8, 4, 8).mean((3, 5)).round(4)


def test_the_pins_are_of_the_present_version_and_of_every_subject():
    assert PINNED["version"] == rendered._VERSION, "record the new images: see this file's first lines"
    assert PINNED["block_means"].keys() == SUBJECTS.keys()
    assert all(pins.keys() == SUBJECTS.keys() for pins in PINNED["sha256"].values())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_sixteen_images_are_the_recorded_ones(subject):
    hashes = PINNED["sha256"].get(torch.backends.cpu.get_cpu_capability())
    advice = "this subject is drawn in another way: raise rendered._VERSION, so that no image of the old way is found"
    if hashes is not None:
        assert drawn(subject).fingerprint == hashes[subject], advice
    assert np.abs(block_means(subject) - np.array(PINNED["block_means"][subject])).max() < TOLERANCE, advice


if __name__ == "__main__":
    found = {
        "version": rendered._VERSION,
        "sha256": {
            torch.backends.cpu.get_cpu_capability(): {name: drawn(name).fingerprint for name in SUBJECTS}
        },
        "block_means": {name: block_means(name).tolist() for name in SUBJECTS},
    }
    PINS.write_text(json.dumps(found) + "\n")
