import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.members import data_free
from mergeability.merging.fisher import Fisher
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

TASKS = ("b", "a", "c")


class Norm(nn.Module):
    """A batch norm in use."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, images):
        mean, variance = self.running_mean[:, None, None], self.running_var[:, None, None]
        return self.weight[:, None, None] * (images - mean) / torch.sqrt(variance + 1e-5)


class Encoder(nn.Module):
    """A convolution, a batch norm, a matrix, a bias; a parameter that does nothing, and an integer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 2)
        self.norm = Norm(6)
        self.proj = nn.Linear(6, 5)
        self.idle = nn.Parameter(torch.zeros(3))
        self.register_buffer("grid", torch.zeros(4))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, images):
        return self.proj(torch.tanh(self.norm(self.conv(images))).mean((2, 3)))


def tower():
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, width=16, layers=1, heads=2, mlp_ratio=2.0, output_dim=5
    )


def randomised(encoder, generator, scale, around=None):
    """Random weights for an encoder, about those given; variances stay positive."""
    state = {}
    for name, value in encoder.state_dict().items():
        if value.is_floating_point():
            noise = scale * torch.randn(value.shape, generator=generator)
            value = (around[name] if around else value.clone()) + (noise.abs() if "var" in name else noise)
        state[name] = value
    return state


@pytest.fixture(params=[Encoder, tower])
def encoder(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return request.param()


@pytest.fixture
def make(tmp_path, encoder):
    """Make profiles of random models of one base, and their weights."""

    def make(tasks=TASKS, *, store=None, copies=False):
        generator = torch.Generator().manual_seed(1)
        base = randomised(encoder, generator, 0.1)
        states, calibration, heads = {}, {}, {}
        for task in sorted(TASKS):
            states[task] = randomised(encoder, generator, 0.02, base)
            images = torch.randn(6, 3, 16, 16, generator=generator)
            labels = torch.randint(0, 4, (6,), generator=generator)
            calibration[task] = Inputs({"images": images}, labels)
            heads[task] = 4 * torch.randn(4, 5, generator=generator)
        if copies:
            states = dict.fromkeys(states, states["a"])
        for name, state in {"base": base, **states}.items():
            named = {f"visual.{key}": value for key, value in state.items()}
            # Written once: a file that is open must not change.
            if not (tmp_path / f"{name}.safetensors").exists():
                safetensors.torch.save_file(named, tmp_path / f"{name}.safetensors")
        paths = {task: tmp_path / f"{task}.safetensors" for task in tasks}
        vectors = TaskVectors.load(paths, tmp_path / "base.safetensors", store=store)
        return Profiles(vectors, Views(encoder, heads, calibration)), base, states

    return make


def information(encoder, state, head, samples):
    """Write the definition out: plain backward passes, sample by sample, in float64."""
    encoder.load_state_dict(state)
    encoder = encoder.double().eval()
    images, labels = samples.tensors["images"], samples.labels
    totals = {name: torch.zeros_like(value) for name, value in encoder.named_parameters()}
    for image, label in zip(images.double(), labels, strict=True):
        encoder.zero_grad()
        features = encoder(image[None])[0]
        logits = head.double() @ (features / features.norm())
        (torch.logsumexp(logits, 0) - logits[label]).backward()
        for name, value in encoder.named_parameters():
            totals[name] += 0 if value.grad is None else value.grad**2
    encoder.float()
    return {name: (total / len(images)).numpy() for name, total in totals.items()}


def test_it_is_the_average_weighted_by_the_information(make, encoder):
    profiles, base, states = make()
    merged = Fisher()(profiles)
    views = profiles.views
    weights = {
        task: information(encoder, state, views.heads[task], views.calibration[task])
        for task, state in states.items()
    }
    floating = [name for name, value in base.items() if value.is_floating_point()]
    assert merged.keys() == {f"visual.{name}" for name in floating}
    for name in floating:
        deltas = np.stack([(states[task][name] - base[name]).double().numpy() for task in TASKS])
        expected = deltas.mean(0)
        if name in weights["a"]:
            each = np.stack([weights[task][name] for task in TASKS])
            total = each.sum(0)
            expected = np.where(total > 0, (each * deltas).sum(0) / np.where(total > 0, total, 1), expected)
        found = merged[f"visual.{name}"].numpy()
        assert found.dtype == np.float32
        # Where the exact information is next to nothing, that of float32 gradients is something else.
        sure = np.ones_like(expected, bool)
        if name in weights["a"]:
            sure = total >= 1e-9 * max(one.max() for one in weights["a"].values())
        assert sure.mean() > 0.6 or not total.any()
        np.testing.assert_allclose(found[sure], expected[sure], rtol=1e-3, atol=1e-5)


def test_what_no_model_depends_on_and_what_is_no_parameter_is_averaged(make, encoder):
    if not isinstance(encoder, Encoder):
        pytest.skip("the tower has neither")
    profiles, base, states = make()
    merged = Fisher()(profiles)
    for name in ("idle", "grid", "norm.running_mean", "norm.running_var"):
        expected = np.mean([(states[task][name] - base[name]).numpy() for task in TASKS], axis=0)
        np.testing.assert_allclose(merged[f"visual.{name}"].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_copies_of_a_model_give_it_back_whatever_their_data(make):
    profiles, base, states = make(copies=True)
    for name, value in Fisher()(profiles).items():
        own = name.removeprefix("visual.")
        torch.testing.assert_close(value, states["a"][own] - base[own], rtol=1e-5, atol=1e-8)


def test_the_order_of_the_tasks_and_other_models_are_irrelevant(make, tmp_path):
    all_three, _, _ = make()
    turned, _, _ = make(tasks=("c", "a", "b"))
    first, second = Fisher()(all_three), Fisher()(turned)
    assert all(torch.equal(first[name], second[name]) for name in first)
    pair, _, _ = make(tasks=("a", "c"))
    alone, selected = Fisher()(pair), Fisher()(all_three.select(["c", "a"]))
    assert all(torch.equal(alone[name], selected[name]) for name in alone)
    assert any(not torch.equal(alone[name], first[name]) for name in alone)


def test_each_model_is_looked_at_once_for_all_merges(make, tmp_path):
    store = Store(tmp_path / "store")
    profiles, _, _ = make(store=store)
    first = Fisher()(profiles)
    assert store.computed["fisher"] == 3
    again = Store(tmp_path / "store")
    second = Fisher()(make(store=again)[0])
    Fisher()(profiles.select(["a", "b"]))
    assert store.computed["fisher"] == 3
    assert not again.computed["fisher"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_arrangement_of_the_parameters_gives_the_same_weights(make):
    plain, _, _ = make()
    vectors = plain.task_vectors
    fused = "visual.conv1.weight" in vectors.names
    cut = Profiles(vectors.with_layout(split_qkv=fused, matricize="conv"), plain.views)
    assert cut.task_vectors.shapes != vectors.shapes
    expected, found = Fisher()(plain), cut.task_vectors.assembled(Fisher()(cut))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_information_far_below_what_float32_squares_hold_still_weighs(tmp_path):
    """Images of 1e-25 under weights of 1e25: features of ordinary size, whose gradients square to 1e-50."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(3, 2, bias=False)

        def forward(self, images):
            return self.proj(images.flatten(1))

    generator = torch.Generator().manual_seed(0)
    encoder, states = Linear(), {}
    states["base"] = {"visual.proj.weight": 1e25 * torch.randn(2, 3, generator=generator)}
    calibration, heads = {}, {}
    for task in "ab":
        change = 1e24 * torch.randn(2, 3, generator=generator)
        states[task] = {"visual.proj.weight": states["base"]["visual.proj.weight"] + change}
        images = 1e-25 * torch.randn(4, 3, 1, 1, generator=generator)
        calibration[task] = Inputs({"images": images}, torch.tensor([0, 1, 1, 0]))
        heads[task] = torch.randn(2, 2, generator=generator)
    for name, state in states.items():
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    paths = {task: tmp_path / f"{task}.safetensors" for task in "ab"}
    profiles = Profiles(
        TaskVectors.load(paths, tmp_path / "base.safetensors"), Views(encoder, heads, calibration)
    )
    merged = Fisher()(profiles)["visual.proj.weight"].double().numpy()
    each = np.stack(
        [
            information(
                encoder, {"proj.weight": states[task]["visual.proj.weight"]}, heads[task], calibration[task]
            )["proj.weight"]
            for task in "ab"
        ]
    )
    base = states["base"]["visual.proj.weight"]
    deltas = np.stack([(states[task]["visual.proj.weight"] - base).double().numpy() for task in "ab"])
    expected = (each * deltas).sum(0) / each.sum(0)
    np.testing.assert_allclose(merged, expected, rtol=1e-3, atol=1e20)
    assert np.abs(merged - deltas.mean(0)).max() > 1e23


def test_models_without_data_are_refused_with_the_way_out(make):
    profiles, _, _ = make()
    with pytest.raises(
        UserError, match=r"got task vectors alone\. Provide .* needs no data: average, ta, ties"
    ):
        Fisher()(profiles.task_vectors)
    with pytest.raises(UserError, match="got Profiles without views") as refused:
        Fisher()(Profiles(profiles.task_vectors))
    assert all(name in str(refused.value) for name in data_free())
    with pytest.raises(UserError, match="alpha"):
        Fisher(alpha="published")
    with pytest.raises(UserError, match="at least two"):
        Fisher()(profiles.select(["a"]))
    assert Fisher.needs_data
