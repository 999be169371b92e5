import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.members import data_free
from mergeability.merging import Average, Dare, IsoC, TaskArithmetic, apply, fixed_alpha
from mergeability.merging.application import scaled_by
from mergeability.merging.method import MergeMethod, checked
from mergeability.merging.stream import mean, stream
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint


@pytest.fixture
def base():
    return {
        "w": torch.tensor([1.0, 2.0]),
        "steps": torch.tensor(5),
        "half": torch.ones(2, dtype=torch.float16),
    }


def test_the_base_is_moved_by_alpha_times_the_merged_task_vector(base):
    result = apply(base, {"w": torch.tensor([10.0, -10.0]), "half": torch.tensor([0.25, 4.0])}, 0.5)
    assert result["w"].tolist() == [6.0, -3.0]
    assert result["half"].tolist() == [1.125, 3.0]
    assert result["half"].dtype == torch.float16
    assert torch.equal(result["steps"], torch.tensor(5))


def test_the_result_shares_no_memory_with_the_base(base):
    result = apply(base, {}, 1)
    for value in result.values():
        value.zero_()
    assert base["w"].tolist() == [1.0, 2.0]
    assert base["steps"].item() == 5


def test_a_base_can_be_a_path_or_a_checkpoint(base, tmp_path):
    path = tmp_path / "base.safetensors"
    safetensors.torch.save_file(base, path)
    for given in (path, str(path), Checkpoint.open(path)):
        assert apply(given, {"w": torch.ones(2)}, 1)["w"].tolist() == [2.0, 3.0]


def test_what_does_not_fit_is_named(base):
    with pytest.raises(UserError, match=r"'v' has the shape \(2,\), but the base has no such tensor"):
        apply(base, {"v": torch.ones(2)}, 1)
    with pytest.raises(UserError, match=r"'w' has the shape \(3,\), but the base has \(2,\)"):
        apply(base, {"w": torch.ones(3)}, 1)
    with pytest.raises(UserError, match="finite number"):
        apply(base, {}, float("inf"))


def test_running_statistics_are_averaged_whatever_the_scale(tmp_path):
    def save(name, mean, weight):
        tensors = {
            "layer4.bn.running_mean": torch.full((2,), mean),
            "layer4.bn.weight": torch.full((2,), weight),
        }
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(tensors, path)
        return path

    base = save("base", 1.0, 1.0)
    vectors = TaskVectors.load({"a": save("a", 2.0, 1.2), "b": save("b", 4.0, 1.4)}, base)
    result = apply(base, Average()(vectors), 0.5)
    torch.testing.assert_close(result["layer4.bn.running_mean"], torch.full((2,), 3.0))
    torch.testing.assert_close(result["layer4.bn.weight"], torch.full((2,), 1.15))


@pytest.mark.parametrize("known", [("first", "second"), ("first",), ("second",)])
def test_one_tensor_under_two_names_stays_one(known):
    shared = torch.tensor([1.0, 2.0])
    base = {"first": shared, "own": torch.tensor([1.0, 2.0]), "second": shared, "turned": shared.flip(0)}
    result = apply(base, {name: torch.tensor([10.0, 20.0]) for name in known}, 0.5)
    assert list(result) == list(base)
    assert result["first"] is result["second"]
    assert result["first"].tolist() == [6.0, 12.0]
    # The same values elsewhere are another tensor, and so is what merely starts at the same place.
    assert result["own"].tolist() == [1.0, 2.0]
    whole = torch.arange(4.0)
    parts = apply({"whole": whole, "start": whole[:2]}, {"start": torch.ones(2)}, 1)
    assert parts["whole"].tolist() == [0, 1, 2, 3]
    assert parts["start"].tolist() == [1, 2]


def test_tensors_without_elements_are_not_one(tmp_path):
    base = {"empty": torch.zeros(0), "other": torch.zeros(0, 3), "third": torch.zeros(0)}
    result = apply(base, {}, 1)
    assert {name: tuple(value.shape) for name, value in result.items()} == {
        "empty": (0,),
        "other": (0, 3),
        "third": (0,),
    }
    assert result["empty"] is not result["third"]


def test_a_scale_that_is_a_word_has_to_become_a_number_first(base, three_models):
    with pytest.raises(UserError, match=r"number here, got 'published': use fixed_alpha"):
        apply(base, {}, IsoC().alpha)
    assert apply(base, {}, fixed_alpha(IsoC(), three_models)).keys() == base.keys()


def test_tied_parameters_are_merged_once_and_statistics_are_averaged(make_task_vectors):
    value = torch.arange(24.0)
    base = {"a": value, "b": value + 1, "twin": value.clone(), "bn.running_mean": torch.zeros(2)}
    deltas = {
        task: {name: torch.full_like(one, scale) for name, one in base.items()}
        for task, scale in (("x", 1.0), ("y", 3.0))
    }
    vectors = make_task_vectors(base, deltas)
    seen = []

    def rule(name, stack):
        seen.append(name)
        return mean(name, stack)

    merged = stream(vectors, rule)
    # The check of types looks at the first tensor as well, so "a" may come twice.
    assert (list(merged), set(seen)) == (["a", "b", "twin", "bn.running_mean"], {"a", "b"})
    assert {name: set(value.tolist()) for name, value in merged.items()} == {name: {2.0} for name in merged}


def test_models_are_checked_and_sorted(three_models):
    assert checked(three_models.select(["c", "a"])).tasks == ("a", "c")
    with pytest.raises(UserError, match="at least two models to merge, got 1"):
        checked(three_models.select(["b"]))


def test_a_method_is_what_declares_its_traits():
    assert isinstance(Average(), MergeMethod)
    assert not Dare(then=TaskArithmetic()).needs_data

    class Undeclared:
        alpha = 1.0

        def __call__(self, models, /):
            return {}

    assert not isinstance(Undeclared(), MergeMethod)
    Undeclared.needs_data, Undeclared.models = False, None
    assert isinstance(Undeclared(), MergeMethod)


def test_the_scale_of_a_preprocessed_merge_is_the_inner_methods():
    inner = TaskArithmetic(alpha=0.7)
    assert scaled_by(Dare(then=inner)) is inner
    assert scaled_by(inner) is inner
    assert scaled_by(Dare()) == Dare()


def test_a_scale_to_be_tuned_is_the_default_of_the_class_or_one(three_models):
    class Own:
        """A method of a user's own, whose class has no default scale."""

        needs_data, models, alpha = False, None, "tuned"

        def __call__(self, models, /):
            return {}

    assert fixed_alpha(Own(), three_models) == 1.0
    assert fixed_alpha(TaskArithmetic(alpha="tuned"), three_models) == fixed_alpha(
        TaskArithmetic(), three_models
    )


def test_methods_without_data_are_found_by_what_their_classes_declare():
    published = [
        "average",
        "ta",
        "ties",
        "dare",
        "tsv",
        "iso_c",
        "iso_cts",
        "consensus_ta",
        "breadcrumbs",
        "slerp",
    ]
    found = data_free()
    assert list(found[: len(published)]) == published
    assert not {"fisher", "regmean"} & set(found)
