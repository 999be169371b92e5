"""Warnings about weights that are read or written: a distant base, and changes that rounding removes."""

import pytest
import torch

from mergeability.errors import UserError
from mergeability.evaluation.merge import Merge
from mergeability.examples import tiny_clip, tiny_task_vectors
from mergeability.merging import Average
from mergeability.pipeline.importing import import_checkpoint
from mergeability.pipeline.merge_writer import MergeWriter
from mergeability.weights import checkpoints

# The distance of bfloat16's numbers from 64 on, which is each value of the base.
STEP = 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            [STEP / 8, 0],
            "keeps only 0 % of the squared change of the weights; after rounding, 1 of 1 changed values",
        ),
        (
            [STEP / 4, STEP],
            "keeps only 94 % of the squared change of the weights; after rounding, 1 of 2 changed",
        ),
        ([STEP / 8, STEP], None),
        ([STEP, 0], None),
    ],
)
def test_a_merge_of_which_rounding_leaves_little_is_told(tmp_path, caplog, change, words):
    vectors = tiny_task_vectors(cars=change, svhn=change)
    writer = MergeWriter(tmp_path, vectors, dtype=torch.bfloat16)
    writer(Merge(vectors, Average()), "average", 1.0, "given", None)
    told = [record.getMessage() for record in caplog.records if "rounding to bfloat16" in record.getMessage()]
    assert len(told) == (words is not None)
    if words is not None:
        assert told[0].startswith("average of cars + svhn: rounding to bfloat16 ")
        assert words in told[0]
        assert told[0].endswith("Set dtype=float32 to keep all changes.")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A base, and a model whose weights are 1.25 times the base's."""
    folder = tmp_path_factory.mktemp("scaled")
    clip = tiny_clip().build()
    checkpoints.save(folder / "base/model.safetensors", clip.state_dict())
    state = {f"visual.{name}": 1.25 * tensor for name, tensor in clip.visual.state_dict().items()}
    return checkpoints.save(folder / "model.safetensors", state), folder / "base"


@pytest.mark.parametrize("limit", [0.2, 0.3])
def test_a_model_far_from_its_base_is_imported_with_a_warning(scaled, tmp_path, caplog, limit):
    path, base = scaled
    card = import_checkpoint(path, tmp_path / "imported", tiny_clip(), base_folder=base, warn_above=limit)
    assert card["relative_norm"] == pytest.approx(0.25)
    told = "model.safetensors is 0.25 times the norm of the base" in caplog.text
    assert told == (limit == 0.2)


def test_a_model_of_another_base_is_not_imported(scaled, tmp_path):
    path, base = scaled
    with pytest.raises(
        UserError, match=r"not fine-tuned from this base.* is 0\.25 times .* at most 0\.2 is accepted"
    ):
        import_checkpoint(path, tmp_path / "imported", tiny_clip(), base_folder=base, refuse_above=0.2)
    assert not (tmp_path / "imported/model.safetensors").exists()
