import pytest
import torch

from mergeability.devices import chosen_device
from mergeability.errors import UserError


def with_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    with_gpus(monkeypatch, 1)
    assert chosen_device("auto") == "cuda"
    with_gpus(monkeypatch, 0)
    assert chosen_device("auto") == "cpu"


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there_can_be_named(monkeypatch, name):
    with_gpus(monkeypatch, 2)
    assert chosen_device(name) == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", "cpu:0", "", 0, None])
def test_an_unknown_device_is_refused(monkeypatch, name):
    with_gpus(monkeypatch, 2)
    with pytest.raises(UserError, match="Expected device to be auto, cpu, cuda"):
        chosen_device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, count):
    with_gpus(monkeypatch, count)
    with pytest.raises(UserError, match=f"no device {name} on this machine: PyTorch finds {count}"):
        chosen_device(name)
