"""Some pairs of models of one's own, of which the others are left out of every table."""

import pytest

from mergeability.examples import tiny_clip, tiny_own_models
from mergeability.metrics.catalogue import WEIGHT_SPACE
from mergeability.pipeline import Request, analyse
from mergeability.pipeline.own_models import ModelSuite
from mergeability.pipeline.request import MergeSettings, ProfileSettings
from mergeability.progress import no_progress


def test_only_the_chosen_pairs_of_models_of_ones_own_are_reported():
    base, files, images = tiny_own_models()
    models = {
        name: {"weights": files[file], "images": images[file], "classes": ["dark", "light"]}
        for name, file in (("one", "greys"), ("two", "hues"), ("three", "greys"))
    }
    found = analyse(
        Request(
            ModelSuite("mine", tiny_clip(), base, models),
            {"cosine": WEIGHT_SPACE["task_vector_cosine_similarity"]},
            profile=ProfileSettings(samples=4, unlabelled=8),
            merging=MergeSettings(pairs=[("one", "three"), ("two", "three")]),
            device="cpu",
        ),
        no_progress,
    )
    assert found.pairs[["task_a", "task_b"]].to_numpy().tolist() == [["one", "three"], ["two", "three"]]
    assert found.pairs["cosine"].iloc[0] == pytest.approx(1)
    assert abs(found.pairs["cosine"].iloc[1]) < 0.5
