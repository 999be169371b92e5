import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.profiles.fisher import fisher_roots, fitting_samples
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

CLASSES, WIDTH, PIXELS = 4, 5, 12


class LinearEncoder(nn.Module):
    """Features W x, so that gradients can be derived by hand; what is added in training shows the mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.project = nn.Linear(PIXELS, WIDTH, bias=False)
        self.spare = nn.Parameter(torch.zeros(2))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, images):
        return self.project(self.dropout(images.flatten(1) + (5 if self.training else 0)))


class BranchingEncoder(LinearEncoder):
    """Looks at a number before it goes on, which no batching over samples can do."""

    def forward(self, images):
        return super().forward(images if float(images.detach().abs().sum()) > 0 else images + 1)


class TiedEncoder(nn.Module):
    """One matrix under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(PIXELS, PIXELS, bias=False)
        self.second = nn.Linear(PIXELS, PIXELS, bias=False)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.second(torch.tanh(self.first(images.flatten(1))))[:, :WIDTH]


def samples_of(images, labels):
    return Inputs({"images": images}, labels)


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 2, 2, generator=generator)
    labels = torch.randint(0, CLASSES, (7,), generator=generator)
    head = 3 * nn.functional.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    state = {
        "steps": torch.tensor(3),
        "project.weight": torch.randn(WIDTH, PIXELS, generator=generator),
        "spare": torch.ones(2),
    }
    return images, labels, head, state


def by_hand(images, labels, head, weight):
    """Square the gradient of CE(H · Wx/‖Wx‖) by the chain rule, one sample after the other, in float64."""
    images, head, weight = (tensor.double().numpy() for tensor in (images.flatten(1), head, weight))
    squares = np.zeros(weight.shape)
    for image, label in zip(images, labels.numpy(), strict=True):
        z = weight @ image
        length = np.linalg.norm(z)
        unit = z / length
        logits = head @ unit
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        of_unit = head.T @ (probabilities - np.eye(len(head))[label])
        of_features = (of_unit - unit * (unit @ of_unit)) / length
        squares += np.outer(of_features, image) ** 2
    return squares / len(images)


def one_by_one(encoder, head, images, labels):
    """Square the gradients that plain backward passes leave in an encoder, sample by sample, in float64."""
    encoder = encoder.double().eval()
    totals = {name: torch.zeros_like(value) for name, value in encoder.named_parameters()}
    for image, label in zip(images.double(), labels, strict=True):
        encoder.zero_grad()
        features = encoder(image[None])[0]
        logits = head.double() @ (features / features.norm())
        (torch.logsumexp(logits, 0) - logits[label]).backward()
        for name, value in encoder.named_parameters():
            totals[name] += value.grad**2
    return {name: (total / len(images)).numpy() for name, total in totals.items()}


@pytest.mark.parametrize("samples_at_once", [1, 3, 7, 32])
@pytest.mark.parametrize("kind", [LinearEncoder, BranchingEncoder])
def test_it_is_the_mean_square_of_the_samples_own_gradients(samples, kind, samples_at_once):
    images, labels, head, state = samples
    roots = fisher_roots(kind(), state, head, samples_of(images, labels), samples_at_once=samples_at_once)
    expected = by_hand(images, labels, head, state["project.weight"])
    np.testing.assert_allclose(roots["project.weight"].numpy() ** 2, expected, rtol=1e-4, atol=1e-9)
    assert roots.keys() == {"project.weight", "spare"}
    assert not roots["spare"].any()


def test_gradients_whose_squares_underflow_are_kept(samples):
    images, labels, head, state = samples
    tiny, weight = images * 1e-30, state["project.weight"] * 1e30
    roots = fisher_roots(LinearEncoder(), {**state, "project.weight": weight}, head, samples_of(tiny, labels))
    expected = np.sqrt(by_hand(images, labels, head, state["project.weight"])) * 1e-30
    np.testing.assert_allclose(roots["project.weight"].double().numpy(), expected, rtol=1e-3, atol=1e-35)
    assert (roots["project.weight"].square() == 0).all()


@pytest.mark.parametrize("samples_at_once", [1, 2, 5])
def test_the_visual_encoder_of_open_clip_agrees_with_plain_backward_passes(samples_at_once):
    from open_clip.transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VisionTransformer(
            image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
        )
        images, labels, head = torch.randn(5, 3, 16, 16), torch.tensor([0, 2, 1, 2, 2]), torch.randn(3, 8)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    roots = fisher_roots(encoder, state, head, samples_of(images, labels), samples_at_once=samples_at_once)
    expected = one_by_one(encoder, head, images, labels)
    assert roots.keys() == expected.keys()
    for name, root in roots.items():
        assert root.dtype == torch.float32
        scale = expected[name].max()
        np.testing.assert_allclose(root.numpy() ** 2, expected[name], rtol=1e-3, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", [TiedEncoder])
def test_a_tied_parameter_has_its_information_under_each_name(samples, kind):
    images, labels, head, _ = samples
    encoder = kind()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    roots = fisher_roots(encoder, state, head, samples_of(images, labels))
    expected = one_by_one(encoder, head, images, labels)["first.weight"]
    for name in ("first.weight", "second.weight"):
        np.testing.assert_allclose(roots[name].numpy() ** 2, expected, rtol=1e-3, atol=1e-8)


def test_a_batch_norm_normalises_by_its_running_statistics():
    encoder = nn.Sequential(
        nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6, 5)
    )
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }
    encoder.load_state_dict(state)
    images, labels = torch.randn(5, 3, 2, 2, generator=generator), torch.tensor([0, 1, 3, 3, 2])
    head = torch.randn(CLASSES, WIDTH, generator=generator)
    roots = fisher_roots(encoder, state, head, samples_of(images, labels), samples_at_once=3)
    expected = one_by_one(encoder, head, images, labels)
    assert roots.keys() == expected.keys()
    for name, root in roots.items():
        np.testing.assert_allclose(root.numpy() ** 2, expected[name], rtol=1e-3, atol=1e-9)


def test_nothing_that_is_given_changes(samples):
    images, labels, head, state = samples
    encoder = LinearEncoder()
    given = [*samples[:3], *state.values(), *encoder.state_dict().values()]
    before = [tensor.clone() for tensor in given]
    random_state = torch.get_rng_state()
    # Also inside a context that switches gradients off.
    with torch.no_grad():
        fisher_roots(encoder, state, head, samples_of(images, labels))
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert encoder.training
    assert encoder.dropout.training
    assert encoder.project.weight.grad is None
    assert not any(tensor.requires_grad for tensor in (images, head, *state.values()))


def test_what_has_no_information_is_named(samples):
    images, labels, head, state = samples
    with pytest.raises(UserError, match="labels from 0 to 1"):
        fisher_roots(LinearEncoder(), state, head[:2], samples_of(images, labels))
    with pytest.raises(UserError, match="at least one"):
        fisher_roots(LinearEncoder(), state, head, samples_of(images[:0], labels[:0]))
    with pytest.raises(UserError, match=r"'project\.weight' is not finite"):
        fisher_roots(LinearEncoder(), state, head, samples_of(images * 1e38, labels))


def test_as_many_samples_at_once_as_models_fit_beside_three():
    state = {"weight": torch.zeros(1000)}
    assert fitting_samples(state, 4000 * 10) == 7
    assert fitting_samples(state, 4000) == 1
    assert fitting_samples(state, 0) == 1


@pytest.fixture
def models(tmp_path, samples):
    generator = torch.Generator().manual_seed(1)
    states = {}
    for task in ("base", "a", "b"):
        change = 0.1 * torch.randn(WIDTH, PIXELS, generator=generator)
        states[task] = {**samples[3], "project.weight": samples[3]["project.weight"] + change}
        named = {f"visual.{name}": value for name, value in states[task].items()}
        safetensors.torch.save_file(named, tmp_path / f"{task}.safetensors")
    return states


@pytest.fixture
def profiles_of(tmp_path, models, samples):
    images, labels, head, _ = samples
    calibration = {"a": samples_of(images, labels), "b": samples_of(images[:4] + 1, labels[:4])}
    views = Views(LinearEncoder(), {"a": head, "b": 2 * head}, calibration)

    def make(store, matricize=None, **options):
        paths = {task: tmp_path / f"{task}.safetensors" for task in ("a", "b")}
        vectors = TaskVectors.load(paths, tmp_path / "base.safetensors", store=store)
        return Profiles(vectors.with_layout(matricize=matricize), views, Run(**options))

    return make


# A budget that nothing fits into: the information goes to a folder that is there as long as the profiles are.
@pytest.mark.parametrize("options", [{}, {"memory_budget": 1e-9}, {"matricize": "conv"}])
def test_every_model_is_read_with_its_own_samples_and_head(profiles_of, models, options):
    profiles = profiles_of(Store(None), **options)
    found = profiles.fisher()
    assert profiles.encoder_parameters == {"visual.project.weight", "visual.spare"}
    for task in ("a", "b"):
        samples = profiles.views.samples(task)
        images, labels = samples.tensors["images"], samples.labels
        weight = models[task]["project.weight"]
        expected = by_hand(images, labels, profiles.views.head(task), weight).ravel()
        information = found[task]("visual.project.weight", 10, 50)
        assert information.dtype == np.float64
        np.testing.assert_allclose(information, expected[10:50], rtol=1e-4, atol=1e-9)
    if "memory_budget" in options:
        assert not profiles.task_vectors.store.computed["fisher"]
        profiles.subject.spilled.cleanup()


def test_a_second_run_and_a_selection_compute_nothing(profiles_of, tmp_path):
    first = Store(tmp_path / "store")
    expected = profiles_of(first).fisher()["b"]("visual.project.weight", 0, 60)
    assert first.computed["fisher"] == 2
    store = Store(tmp_path / "store")
    again = profiles_of(store).select(["b"]).fisher()
    assert again.keys() == {"b"}
    np.testing.assert_array_equal(again["b"]("visual.project.weight", 0, 60), expected)
    assert not store.computed


def test_the_model_whose_information_is_not_finite_is_named(profiles_of, tmp_path):
    profiles = profiles_of(Store(None))
    samples = profiles.views.calibration["b"]
    profiles.views.calibration["b"] = samples_of(samples.tensors["images"] * 1e38, samples.labels)
    with pytest.raises(UserError, match=r"model of 'b'.*not finite"):
        profiles.fisher()
