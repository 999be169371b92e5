import pytest
import safetensors.torch
import torch

from mergeability.checkpoints import Checkpoint
from mergeability.errors import UserError
from mergeability.merging import Average, apply
from mergeability.task_vectors import TaskVectors


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
    with pytest.raises(UserError, match=r"'v' of shape \(2,\), the base has no such tensor"):
        apply(base, {"v": torch.ones(2)}, 1)
    with pytest.raises(UserError, match=r"'w' of shape \(3,\), the base has \(2,\)"):
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
