from dataclasses import dataclass, replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.linalg import grams
from mergeability.profiles import subspaces
from mergeability.profiles.activations import sample_activations
from mergeability.profiles.evidence import ensure_entries
from mergeability.profiles.gradients import task_gradients
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

TASKS = ("a", "b", "c")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([nn.Linear(6, 6)])
        self.proj = nn.Linear(6, 4)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, images):
        tokens = images.transpose(1, 2).flatten(2)
        return self.proj(torch.tanh(self.transformer.resblocks[0](tokens)).mean(1))


def state_of(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"visual.{name}": scale * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in Encoder().state_dict().items()
    }


@pytest.fixture
def files(tmp_path):
    base = state_of(0)
    states = {"base": base}
    for seed, task in enumerate(TASKS, start=1):
        change = state_of(seed, scale=0.1)
        states[task] = {name: value + change[name] for name, value in base.items()}
    for name, state in states.items():
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    return tmp_path


def samples_of(images, labels):
    return Inputs({"images": images}, labels)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(3)
    calibration = {
        task: samples_of(
            torch.randn(4, 3, 5, 2, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        )
        for task in TASKS
    }
    heads = {task: torch.randn(3, 4, generator=generator) for task in TASKS}
    return Views(Encoder(), heads, calibration)


@pytest.fixture
def load(files):
    def load_into(store=None, tasks=TASKS):
        paths = {task: files / f"{task}.safetensors" for task in tasks}
        return TaskVectors.load(paths, files / "base.safetensors", store=store)

    return load_into


def state(files, task):
    loaded = safetensors.torch.load_file(files / f"{task}.safetensors")
    return {name.removeprefix("visual."): value for name, value in loaded.items()}


def gram_of(rows):
    flat = np.stack([np.asarray(row, dtype=np.float64).ravel() for row in rows])
    return flat @ flat.T


def test_grams_of_task_vectors_agree_with_numpy(load, files, monkeypatch):
    vectors = load()
    base = state(files, "base")
    names = [name.removeprefix("visual.") for name in vectors.names]
    deltas = {task: [(state(files, task)[name] - base[name]).numpy() for name in names] for task in TASKS}
    whole = gram_of([np.concatenate([delta.ravel() for delta in deltas[task]]) for task in TASKS])
    np.testing.assert_allclose(Profiles(vectors).gram("task_vector"), whole, rtol=1e-6)
    # In chunks, as a layer of a large model is.
    monkeypatch.setattr(grams, "BLOCK", 5)
    layers = Profiles(load()).layer_grams("task_vector")
    for layer in range(len(names)):
        np.testing.assert_allclose(layers[layer], gram_of([deltas[task][layer] for task in TASKS]), rtol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        layers[0, 0, 0] = 1


def test_views_agree_with_one_model_after_the_other(load, files, views):
    profiles = Profiles(load(), views)
    pool = Inputs.joined([views.calibration[task] for task in TASKS])
    means = [sample_activations(views.encoder, state(files, task), pool).double().mean(0) for task in TASKS]
    np.testing.assert_allclose(profiles.gram("activation"), gram_of(means), rtol=1e-5)
    found = [
        task_gradients(views.encoder, state(files, task), views.heads[task], views.calibration[task])
        for task in TASKS
    ]
    of_encoder = [torch.cat([gradient.ravel() for gradient in one.encoder.values()]) for one in found]
    np.testing.assert_allclose(profiles.gram("encoder_gradient"), gram_of(of_encoder), rtol=1e-5)
    np.testing.assert_allclose(
        profiles.gram("input_gradient"), gram_of([one.inputs for one in found]), rtol=1e-5
    )


def test_the_pool_can_be_pinned(load, files, views):
    pinned = Profiles(load(), replace(views, pool=("c", "a"))).gram("activation")
    pool = Inputs.joined([views.calibration["a"], views.calibration["c"]])
    means = [sample_activations(views.encoder, state(files, task), pool).double().mean(0) for task in TASKS]
    np.testing.assert_allclose(pinned, gram_of(means), rtol=1e-5)


ALL_VIEWS = ("task_vector", "activation", "encoder_gradient", "input_gradient")


def test_a_second_run_computes_nothing(load, views, tmp_path):
    first = Profiles(load(Store(tmp_path / "store")), views)
    expected = [first.gram(view) for view in ALL_VIEWS]
    computed = first.task_vectors.store.computed
    assert computed["gradient"] == computed["activation"] == 3
    store = Store(tmp_path / "store")
    again = Profiles(load(store), replace(views, batch_size=1))
    for view, gram in zip(ALL_VIEWS, expected, strict=True):
        np.testing.assert_array_equal(again.gram(view), gram)
    assert not store.computed


def test_transformed_task_vectors_are_not_taken_for_the_models(load, tmp_path):
    vectors = load(Store(tmp_path / "store"))
    gram = Profiles(vectors).gram("task_vector")
    doubled = vectors.transformed(lambda _task, _name, delta: 2 * delta)
    np.testing.assert_allclose(Profiles(doubled).gram("task_vector"), 4 * gram)
    np.testing.assert_array_equal(Profiles(load(Store(tmp_path / "store"))).gram("task_vector"), gram)


def test_a_joining_model_costs_one_pass(load, views, tmp_path):
    pinned = replace(views, pool=TASKS)
    Profiles(load(Store(tmp_path / "store"), TASKS[:2]), pinned).gram("activation")
    store = Store(tmp_path / "store")
    Profiles(load(store), pinned).gram("activation")
    assert (store.computed["activation"], store.found["activation"]) == (1, 2)


def test_changed_evidence_is_computed_again(load, views, tmp_path):
    root = tmp_path / "store"
    profiles = Profiles(load(Store(root)), views)
    profiles.gram("encoder_gradient")
    profiles.gram("activation")
    images, labels = views.calibration["a"].tensors["images"], views.calibration["a"].labels
    other_labels = replace(
        views, calibration={**views.calibration, "a": samples_of(images, (labels + 1) % 3)}
    )
    other_head = replace(views, heads={**views.heads, "b": views.heads["b"] + 1})
    other_images = replace(views, calibration={**views.calibration, "a": samples_of(images + 1, labels)})
    other_layer = replace(views, layer="proj")
    other_encoder = Encoder()
    other_encoder.act = nn.GELU()
    for changed, gradients, activations in (
        (other_labels, 1, 0),
        (other_head, 1, 0),
        (other_images, 1, 3),
        (other_layer, 0, 3),
        (replace(views, encoder=other_encoder), 3, 3),
    ):
        store = Store(root)
        changed_profiles = Profiles(load(store), changed)
        changed_profiles.gram("encoder_gradient")
        changed_profiles.gram("activation")
        assert (store.computed["gradient"], store.computed["activation"]) == (gradients, activations)


def test_progress_sees_every_loop(load, views):
    seen = {}

    def progress(items, description, total):
        items = list(items)
        seen[description] = (len(items), total)
        return items

    profiles = Profiles(load(), views, Run(progress=progress))
    for view in ALL_VIEWS:
        profiles.gram(view)
    profiles.subspace_overlaps("right", "top", 2)
    assert seen == {
        "task vectors": (4, 4),
        "activations": (3, 3),
        "gradients": (3, 3),
        "encoder gradients": (4, 4),
        "input gradients": (1, 1),
        "singular vectors": (6, 6),
        "subspaces of all pairs": (2, 2),
    }


def test_what_was_decomposed_ahead_is_not_decomposed_again(load, files, tmp_path, monkeypatch):
    Profiles(load(Store(tmp_path))).decompose(2)
    monkeypatch.setattr(subspaces, "decompose", lambda *_: pytest.fail("decomposed again"))
    vectors, base = load(Store(tmp_path)), state(files, "base")
    profiles = Profiles(vectors)
    overlaps = profiles.subspace_overlaps("left", "top", 2)
    found = profiles.singular_values(3)
    for layer, name in enumerate(vectors.matrices):
        short = name.removeprefix("visual.")
        deltas = [(state(files, task)[short] - base[short]).double().numpy() for task in TASKS]
        expected = [np.linalg.svd(delta, compute_uv=False)[:3] for delta in deltas]
        np.testing.assert_allclose(found[layer], expected, rtol=1e-5)
        (left, right) = (np.linalg.svd(delta)[0][:, :2] for delta in deltas[:2])
        assert overlaps[layer, 0, 1] == pytest.approx((np.square(left.T @ right)).sum(), rel=1e-4)


def test_what_is_not_finite_is_an_error(load, views):
    images, labels = views.calibration["b"].tensors["images"], views.calibration["b"].labels
    broken = replace(views, calibration={**views.calibration, "b": samples_of(images * torch.inf, labels)})
    with pytest.raises(UserError, match="encoder_gradient of 'b' is not finite"):
        Profiles(load(), broken).gram("encoder_gradient")


@pytest.mark.parametrize("budget", [0, -1, float("inf"), float("nan")])
def test_a_memory_budget_is_a_positive_number(load, budget):
    with pytest.raises(UserError, match="Expected memory_budget to be a positive number"):
        Profiles(load(), run=Run(memory_budget=budget))


@dataclass(frozen=True)
class LargestEntries:
    """Evidence that the package does not know: each model's largest change, plus an option."""

    offset: float = 0.0

    kind = "largest"
    description = "largest entries of a test"

    def key(self, subject, task):
        return {"model": subject.task_vectors.hashes[task]}

    def compute(self, subject, task):
        vectors = subject.task_vectors
        return {"largest": max(vectors.delta(task, name).abs().max() for name in vectors.names)[None]}

    def combine(self, subject):
        keys = ensure_entries(self, subject, subject.store)
        found = [float(subject.store.read(self.kind, keys[task])["largest"]) for task in subject.tasks]
        return np.array(found) + self.offset


def test_evidence_from_elsewhere_needs_no_change_of_profiles(load, files, tmp_path):
    profiles = Profiles(load(Store(tmp_path / "store")))
    expected = [
        max(
            float((state(files, task)[name] - value).abs().max())
            for name, value in state(files, "base").items()
        )
        for task in TASKS
    ]
    found = profiles.evidence(LargestEntries())
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert profiles.evidence(LargestEntries()) is found
    np.testing.assert_allclose(profiles.evidence(LargestEntries(1.0)), 1 + np.array(expected), rtol=1e-6)
    np.testing.assert_allclose(profiles.select(["c", "a"]).evidence(LargestEntries()), found[[2, 0]])
    assert profiles.task_vectors.store.computed["largest"] == 3


class Words(nn.Module):
    """An encoder of tokens with a mask: its inputs are two tensors, neither of which is an image."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(7, 6))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([nn.Linear(6, 6)])
        self.proj = nn.Linear(6, 4)

    def forward(self, tokens, mask):
        rows = torch.tanh(self.transformer.resblocks[0](self.embedding[tokens])) * mask[..., None]
        return self.proj(rows.mean(1))


@pytest.mark.parametrize("mask_type", [torch.float32, torch.int64])
def test_inputs_need_not_be_images(tmp_path, mask_type):
    generator = torch.Generator().manual_seed(4)
    shapes = {name: value.shape for name, value in Words().state_dict().items()}
    states = {
        task: {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        for task in ("base", "a", "b")
    }
    for task, one in states.items():
        safetensors.torch.save_file(
            {f"visual.{n}": v for n, v in one.items()}, tmp_path / f"{task}.safetensors"
        )
    calibration = {
        task: Inputs(
            {
                "tokens": torch.randint(0, 7, (5, 3), generator=generator),
                "mask": torch.ones(5, 3, dtype=mask_type),
            },
            torch.randint(0, 3, (5,), generator=generator),
        )
        for task in "ab"
    }
    heads = {task: torch.randn(3, 4, generator=generator) for task in "ab"}
    paths = {task: tmp_path / f"{task}.safetensors" for task in "ab"}
    vectors = TaskVectors.load(paths, tmp_path / "base.safetensors")
    profiles = Profiles(vectors, Views(Words(), heads, calibration, batch_size=2))

    def gradients(task):
        encoder, samples = Words(), calibration[task]
        encoder.load_state_dict(states[task])
        mask = samples.tensors["mask"].float().requires_grad_()
        found = nn.functional.normalize(encoder(samples.tensors["tokens"], mask), dim=-1)
        nn.functional.cross_entropy(found @ heads[task].T, samples.labels).backward()
        return torch.cat([value.grad.flatten() for value in encoder.parameters()]), mask.grad

    found = {task: gradients(task) for task in "ab"}
    expected = gram_of([found[task][0] for task in "ab"])
    np.testing.assert_allclose(profiles.gram("encoder_gradient"), expected, rtol=1e-4)
    if mask_type.is_floating_point:
        np.testing.assert_allclose(
            profiles.gram("input_gradient"), gram_of([found[task][1] for task in "ab"]), rtol=1e-4
        )
    else:
        for ask in (profiles.gram, profiles.shared_grams):
            with pytest.raises(UserError, match="floating-point inputs, but the inputs of 'a' are integers"):
                ask("input_gradient")
    assert np.isfinite(profiles.gram("activation")).all()
    assert profiles.fisher()["a"]("visual.proj.weight", 0, 24).any()
    assert profiles.linear_inputs()[0]["visual.proj.weight"]


def test_what_is_missing_is_named(load, views):
    vectors = load()
    with pytest.raises(UserError, match="one of the views"):
        Profiles(vectors).gram("weights")
    with pytest.raises(UserError, match="require images and heads"):
        Profiles(vectors).gram("activation")
    with pytest.raises(UserError, match="`side` to be left or right"):
        Profiles(vectors).subspace_overlaps("upper", "top", 3)
    without_head = replace(views, heads={"a": views.heads["a"]})
    with pytest.raises(UserError, match="no zero-shot head for 'b'"):
        Profiles(vectors, without_head).gram("encoder_gradient")
    without_images = replace(views, calibration={"a": views.calibration["a"]})
    with pytest.raises(UserError, match="There are no calibration images for 'b'"):
        Profiles(vectors, without_images).gram("input_gradient")
    images, labels = views.calibration["c"].tensors["images"], views.calibration["c"].labels
    fewer = replace(views, calibration={**views.calibration, "c": samples_of(images[:2], labels[:2])})
    with pytest.raises(UserError, match=r"'c' has \(2, 3, 5, 2\)"):
        Profiles(vectors, fewer).gram("input_gradient")
    other = Encoder()
    other.proj = nn.Linear(6, 5)
    with pytest.raises(UserError, match=r"'proj.bias' of shape \(5,\).*\(4,\)"):
        Profiles(vectors, replace(views, encoder=other)).gram("activation")
