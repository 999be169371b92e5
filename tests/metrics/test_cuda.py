import pytest
import torch

from mergeability.context import Run
from mergeability.metrics.measure import measure
from mergeability.profiles import Profiles


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU: there is no GPU here")
def test_a_gpu_gives_the_numbers_of_the_cpu(make_profiles, five_models):
    on_cpu = make_profiles(five_models)
    on_gpu = Profiles(on_cpu.task_vectors, on_cpu.views, Run(device="cuda"))
    expected, found = measure(on_cpu), measure(on_gpu)
    assert list(found) == list(expected)
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4, abs=1e-6)
    assert next(on_cpu.views.encoder.parameters()).device.type == "cpu", "the one that was given stays"
