"""Models of a tiny encoder with data, so that all 28 metrics can be measured in milliseconds."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors

CLASSES, WIDTH, SIDE = 3, 6, 4


class TinyEncoder(nn.Module):
    """Two blocks over four tokens of an image, under open_clip's name for the blocks."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(
            [nn.Linear(3 * SIDE, 3 * SIDE), nn.Linear(3 * SIDE, 3 * SIDE)]
        )
        self.proj = nn.Linear(3 * SIDE, WIDTH, bias=False)

    def forward(self, images):
        tokens = images.permute(0, 2, 1, 3).flatten(2)
        for block in self.transformer.resblocks:
            tokens = tokens + torch.tanh(block(tokens))
        return self.proj(tokens.mean(1))


def tiny_state(seed):
    generator = torch.Generator().manual_seed(seed)
    state = TinyEncoder().state_dict()
    return {
        f"visual.{name}": 0.3 * torch.randn(value.shape, generator=generator) for name, value in state.items()
    }


def tiny_model(seed):
    change = tiny_state(seed)
    return {name: value + 0.2 * change[name] for name, value in tiny_state(0).items()}


@pytest.fixture
def make_profiles(tmp_path):
    """Make profiles of models given by name → state dict; a task's data depend on its name alone."""

    def save(name, state):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(state, path)
        return path

    def make(models, *, with_views=True, pool=None, alike=()):
        paths = {task: save(task, state) for task, state in models.items()}
        vectors = TaskVectors.load(paths, save("base", tiny_state(0)))
        if not with_views:
            return Profiles(vectors)
        calibration, heads = {}, {}
        for task in models:
            generator = torch.Generator().manual_seed(7 if task in alike else sum(map(ord, task)))
            images = torch.randn(5, 3, SIDE, SIDE, generator=generator)
            labels = torch.randint(0, CLASSES, (5,), generator=generator)
            calibration[task] = Inputs({"images": images}, labels)
            heads[task] = 4 * nn.functional.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
        unlabelled = {task: one.without_labels() for task, one in calibration.items()}
        return Profiles(vectors, Views(TinyEncoder(), heads, calibration, pool=pool, unlabelled=unlabelled))

    return make


@pytest.fixture
def five_models():
    return {task: tiny_model(seed) for seed, task in enumerate("abcde", start=1)}


@pytest.fixture
def base_state():
    return tiny_state(0)


@pytest.fixture(scope="session")
def golden():
    return Path(__file__).parents[1] / "golden"
