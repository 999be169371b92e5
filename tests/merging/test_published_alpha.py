"""The published scales of isotropic merging: found by the shapes of a tower and the number of models."""

import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.evaluation.scales import ScaleChoice
from mergeability.merging import Average, Dare, IsoC, IsoCTS, TaskArithmetic, fixed_alpha
from mergeability.merging.published_alpha import isotropic_alpha, tower_name
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint

# Marczak et al. 2025, for 8, 14 and 20 tasks.
PUBLISHED = {
    "ViT-B-32": ((768, 32, 12), (1.0, 1.0, 0.9)),
    "ViT-B-16": ((768, 16, 12), (1.4, 1.2, 1.0)),
    "ViT-L-14": ((1024, 14, 24), (1.5, 1.3, 1.0)),
}


@pytest.fixture
def make_tower(tmp_path):
    """Make task vectors of so many copies of a file that has a tower's first kernel and a part of each block."""

    def make(width, patch, blocks, count):
        tensors = {
            f"visual.transformer.resblocks.{block}.ln_1.weight": torch.ones(2, dtype=torch.float16)
            for block in range(blocks)
        }
        # The first by name, which is read wherever types are checked: a small one.
        tensors["visual.class_embedding"] = torch.ones(2, dtype=torch.float16)
        tensors["visual.conv1.weight"] = torch.zeros(width, 3, patch, patch, dtype=torch.float16)
        path = tmp_path / f"{width}-{patch}-{blocks}.safetensors"
        if not path.exists():
            safetensors.torch.save_file(tensors, path)
        model = Checkpoint.open(path)
        # Once, and not by every copy at the same time.
        assert model.sha256
        return TaskVectors.load({f"task{number}": model for number in range(count)}, model)

    return make


@pytest.mark.parametrize("name", PUBLISHED)
def test_towers_are_told_apart_by_their_shapes(make_tower, name):
    shape, alphas = PUBLISHED[name]
    twenty = make_tower(*shape, 20)
    for count, alpha in zip((8, 14, 20), alphas, strict=True):
        vectors = twenty.select(twenty.tasks[:count])
        assert tower_name(vectors) == name
        assert isotropic_alpha(vectors) == (alpha, True)
        for method in (IsoC(), IsoCTS()):
            assert method.published_alpha(vectors) == (alpha, True)
            assert fixed_alpha(method, vectors) == alpha
            # DARE scales by what it hands on to.
            assert fixed_alpha(Dare(then=method), vectors) == alpha
    assert isotropic_alpha(twenty.select(twenty.tasks[:9])) == (1.0, False)


def test_any_other_tower_or_number_of_models_has_the_scale_1(make_tower):
    assert isotropic_alpha(make_tower(768, 16, 12, 2)) == (1.0, False)
    assert isotropic_alpha(make_tower(768, 16, 11, 8)) == (1.0, False)
    assert isotropic_alpha(make_tower(64, 16, 12, 8)) == (1.0, False)
    assert tower_name(make_tower(768, 16, 11, 2)) is None
    assert fixed_alpha(IsoC(), make_tower(768, 16, 12, 2)) == 1


def test_models_that_are_no_tower_have_the_scale_1(three_models):
    assert tower_name(three_models) is None
    assert fixed_alpha(IsoCTS(), three_models) == 1
    # What is given is taken; "tuned" stands for the default where there are no images.
    assert fixed_alpha(IsoC(alpha=0.7), three_models) == 0.7
    assert fixed_alpha(IsoCTS(alpha="tuned"), three_models) == 1
    assert fixed_alpha(TaskArithmetic(alpha="tuned"), three_models) == 0.3
    assert fixed_alpha(Dare(), three_models) == 1
    assert fixed_alpha(Dare(then=TaskArithmetic(alpha="tuned")), three_models) == 0.3


def test_only_isotropic_methods_have_published_scales():
    for method in (IsoC, IsoCTS):
        assert method().alpha == "published"
    with pytest.raises(UserError, match="'tuned', got 'published'"):
        Average(alpha="published")
    with pytest.raises(UserError, match="'tuned' or 'published', got 'best'"):
        IsoCTS(alpha="best")


def test_a_tower_is_recognised_in_whatever_arrangement(make_tower):
    vectors = make_tower(768, 16, 12, 8)
    assert isotropic_alpha(vectors.with_layout(matricize="conv")) == (1.4, True)


def test_a_report_says_nothing_where_the_scale_is_published(make_tower):
    methods = {"iso_c": IsoC(), "dare": Dare(then=IsoC()), "average": Average()}
    towers = [make_tower(*PUBLISHED["ViT-B-32"][0], count) for count in (8, 14)]
    assert ScaleChoice().notes(methods, towers) == []
    (found,) = ScaleChoice().notes({"iso_c": IsoC()}, [*towers, make_tower(*PUBLISHED["ViT-B-32"][0], 3)])
    assert found == "iso_c: no α is published for 3 models of this architecture; α = 1 is used."
