"""Small models with matrices, vectors, a convolution and an integer, made from one base."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from mergeability.task_vectors import TaskVectors

SHAPES = {
    "visual.proj": (8, 6),
    "visual.in_proj_weight": (18, 6),
    "visual.ln.weight": (6,),
    "visual.conv1.weight": (4, 3, 2, 2),
    "visual.logit": (),
}


@pytest.fixture(scope="session")
def golden():
    return Path(__file__).parents[1] / "golden"


@pytest.fixture
def random_tensors():
    def make(seed, scale=1.0, shapes=SHAPES):
        generator = torch.Generator().manual_seed(seed)
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    return make


@pytest.fixture
def make_task_vectors(tmp_path):
    """Make task vectors from a base and deltas, each written in the dtype asked for."""

    def make(base, deltas, dtype=torch.float32):
        def save(name, state):
            path = tmp_path / f"{name}.safetensors"
            # An integer that is no parameter, beside the others.
            steps = {("visual.steps" if "visual.proj" in state else "steps"): torch.tensor(7)}
            safetensors.torch.save_file({key: value.to(dtype) for key, value in state.items()} | steps, path)
            return path

        models = {
            task: save(task, {name: base[name] + delta[name] for name in base})
            for task, delta in deltas.items()
        }
        return TaskVectors.load(models, save("base", base))

    return make


@pytest.fixture
def three_models(make_task_vectors, random_tensors):
    deltas = {task: random_tensors(seed, 0.1) for seed, task in enumerate(("b", "a", "c"), start=1)}
    return make_task_vectors(random_tensors(0), deltas)
