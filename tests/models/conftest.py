"""A CLIP small enough to build and train in a test."""

from collections.abc import Callable

import pytest

from mergeability.models.clip import ClipModel

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_model() -> Callable[..., ClipModel]:
    """Return a function that makes the tiny model, with any of its fields changed."""

    def make(**changes) -> ClipModel:
        fields = {"name": "tiny", "architecture": TINY, "learning_rate": 1e-3, "batch_size": 8}
        return ClipModel(**fields | changes)

    return make
