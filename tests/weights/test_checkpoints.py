"""Canonical state dicts: names, safety, hashes."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import Checkpoint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_come_back_in_their_own_dtype(tmp_path, dtype):
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a": torch.zeros((), dtype=dtype)}
    checkpoint = Checkpoint.open(checkpoints.save(tmp_path / "m.safetensors", tensors))
    assert checkpoint.names == ("a", "b")
    assert checkpoint.shapes == {"a": (), "b": (2, 3)}
    assert set(checkpoint.dtypes.values()) == {dtype}
    assert torch.equal(checkpoint.tensor("b"), tensors["b"])
    assert all(torch.equal(checkpoint.state_dict()[name], tensors[name]) for name in tensors)


def test_every_range_of_queries_keys_and_values_kept_apart_is_that_of_the_fused_tensor(tmp_path):
    attention = "visual.transformer.resblocks.0.attn."
    parts = {f"{attention}{part}_proj_weight": torch.rand(2, 2) for part in "qkv"}
    bias = {f"{attention}in_proj_bias": torch.zeros(6)}
    checkpoint = Checkpoint.open(checkpoints.save(tmp_path / "m.safetensors", parts | bias))
    whole = torch.cat([*parts.values()]).flatten().numpy()
    for start in range(13):
        for stop in range(start, 13):
            found = checkpoint.values(f"{attention}in_proj_weight", start, stop)
            np.testing.assert_array_equal(found, whole[start:stop])


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = checkpoints.save(tmp_path / "m.safetensors", {"a": torch.ones(3)})
    assert Checkpoint.open(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tied_and_strided_tensors_can_be_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    path = checkpoints.save(tmp_path / "m.safetensors", {"a": weight, "b": weight, "c": weight.T})
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(loaded["a"], loaded["b"])
    assert torch.equal(loaded["c"], weight.T)


def test_hashes_of_tensors_see_names_dtypes_shapes_and_values_but_not_order():
    one = {"a": torch.ones(4), "b": torch.zeros(2)}
    same = {"b": torch.zeros(2), "a": torch.ones(4)}
    others = [
        {"a": torch.ones(4), "c": torch.zeros(2)},
        {"a": torch.ones(2, 2), "b": torch.zeros(2)},
        {"a": torch.ones(4).double(), "b": torch.zeros(2)},
        {"a": torch.tensor([1.0, 1, 1, 2]), "b": torch.zeros(2)},
    ]
    assert checkpoints.tensors_hash(one) == checkpoints.tensors_hash(same)
    assert len({checkpoints.tensors_hash(tensors) for tensors in [one, *others]}) == 5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No checkpoint at .*gone\.safetensors"):
        Checkpoint.open(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"There is no file at .*gone\.safetensors"):
        checkpoints.load(tmp_path / "gone.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = checkpoints.save(tmp_path / "m.safetensors", {"a": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        Checkpoint.open(path)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pickled"):
        Checkpoint.open(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    path = tmp_path / "empty.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(UserError, match="contains no tensors"):
        Checkpoint.open(path)


def test_a_card_marks_a_finished_checkpoint(tmp_path):
    assert checkpoints.read_card(tmp_path) is None
    checkpoints.write_card(tmp_path, {"task": "digits", "accuracy": {"test": 0.5}})
    assert checkpoints.read_card(tmp_path) == {"task": "digits", "accuracy": {"test": 0.5}}
