"""Small models: a few tensors of every kind for formulas, and a whole visual tower for what every method keeps to."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

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

    def make(base, deltas, dtype=torch.float32, **options):
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
        return TaskVectors.load(models, save("base", base), **options)

    return make


@pytest.fixture
def three_models(make_task_vectors, random_tensors):
    deltas = {task: random_tensors(seed, 0.1) for seed, task in enumerate(("b", "a", "c"), start=1)}
    return make_task_vectors(random_tensors(0), deltas)


def built_tower(*, tied=False):
    """Build the visual tower of a CLIP of one block, with an integer buffer; its projection twice if tied."""
    vision = CLIPVisionCfg(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    text = CLIPTextCfg(context_length=4, vocab_size=8, width=8, heads=1, layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text).visual.eval()
    tower.register_buffer("steps", torch.tensor(7))
    if tied:
        tower.mirror = nn.Parameter(tower.state_dict()["proj"].clone())
    return tower


class Towers:
    """Makes profiles of towers fine-tuned from one base, with random images, labels and heads."""

    def __init__(self, folder, *, tied=False):
        self.folder, self.tied = folder, tied
        self.encoder = built_tower(tied=tied)
        self.base = {f"visual.{name}": value for name, value in self.encoder.state_dict().items()}
        if tied:
            self.base["visual.mirror"] = self.base["visual.proj"]
        self.floating = sorted(name for name, value in self.base.items() if value.is_floating_point())
        self.written = 0

    def delta(self, seed, scale=0.02):
        """Draw the change of every parameter."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {
            name: scale * torch.randn(self.base[name].shape, generator=generator) for name in self.floating
        }
        return drawn | ({"visual.mirror": drawn["visual.proj"]} if self.tied else {})

    def make(self, deltas, dtype=torch.float32, base=None, store=None, arrangement=None, **options):
        """Write the base and the models and open them with all that a method may want to know of them."""
        self.written += 1
        folder = self.folder / str(self.written)
        folder.mkdir()
        base = self.base if base is None else base

        def save(name, delta):
            state = {
                key: (value + delta.get(key, 0)).to(dtype) if value.is_floating_point() else value.clone()
                for key, value in base.items()
            }
            safetensors.torch.save_file(state, folder / f"{name}.safetensors")
            return folder / f"{name}.safetensors"

        models = {task: save(task, delta) for task, delta in deltas.items()}
        vectors = TaskVectors.load(models, save("base", {}), store=store, **options)
        return Profiles(vectors.with_layout(**(arrangement or {})), self.views(deltas))

    def views(self, tasks):
        """Draw images, labels and a head of every task, by its name alone."""
        calibration, heads = {}, {}
        for task in tasks:
            generator = torch.Generator().manual_seed(sum(map(ord, task)))
            images = torch.randn(3, 3, 16, 16, generator=generator)
            labels = torch.randint(0, 4, (3,), generator=generator)
            calibration[task] = Inputs({"images": images}, labels)
            heads[task] = 4 * torch.randn(4, 8, generator=generator)
        return Views(self.encoder, heads, calibration)


@pytest.fixture
def towers(tmp_path):
    return Towers(tmp_path)


@pytest.fixture
def tied_towers(tmp_path):
    return Towers(tmp_path, tied=True)


@pytest.fixture(scope="session")
def trio(tmp_path_factory):
    """Profiles of three towers, whose evidence is computed once for all tests: whoever uses them changes nothing."""
    towers = Towers(tmp_path_factory.mktemp("trio"))
    deltas = {task: towers.delta(seed) for seed, task in enumerate(("b", "a", "c"), start=1)}
    return towers.make(deltas, store=Store(tmp_path_factory.mktemp("store")))
