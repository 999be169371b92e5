"""Gradients of two models on the same samples: how often they are computed, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from mergeability.context import Run
from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.linalg import grams
from mergeability.metrics import same_samples as shared
from mergeability.profiles import gradients
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

TASKS = ("a", "b", "c", "d")
VIEWS = ("encoder_gradient", "input_gradient")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.proj = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, images):
        return self.proj(torch.tanh(self.inner(images.flatten(1))))


def samples_of(images, labels):
    return Inputs({"images": images}, labels)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    calibration, heads = {}, {}
    for position, task in enumerate(TASKS):
        count, classes = 3 + position, 2 + position
        labels = torch.randint(0, classes, (count,), generator=generator)
        calibration[task] = samples_of(torch.randn(count, 3, 2, 2, generator=generator), labels)
        heads[task] = torch.randn(classes, 4, generator=generator)
    return Views(Encoder(), heads, calibration)


@pytest.fixture
def load(tmp_path):
    generator = torch.Generator().manual_seed(2)
    base = {f"visual.{name}": value.clone() for name, value in Encoder().state_dict().items()}
    for task in ("base", *TASKS):
        change = 0.0 if task == "base" else 0.1
        state = {k: v + change * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        safetensors.torch.save_file(state, tmp_path / f"{task}.safetensors")

    def load_into(store=None, tasks=TASKS):
        paths = {task: tmp_path / f"{task}.safetensors" for task in tasks}
        return TaskVectors.load(paths, tmp_path / "base.safetensors", store=store)

    return load_into


@pytest.fixture
def passes(monkeypatch):
    """Count how often a model is differentiated."""
    seen = []
    whole = gradients.task_gradients

    def counted(encoder, state, head, samples, **options):
        seen.append(len(samples))
        return whole(encoder, state, head, samples, **options)

    monkeypatch.setattr(gradients, "task_gradients", counted)
    return seen


def test_every_model_is_differentiated_on_every_task_once(load, views, passes):
    evidence = Profiles(load(), views)
    for view in VIEWS:
        assert evidence.shared_grams(view).shape == (4, 4, 2, 2)
    # Of these, four on the models' own samples, which the published metrics share.
    assert len(passes) == 4 * 4
    assert sorted(passes) == sorted(4 * [3, 4, 5, 6])
    evidence.gram("encoder_gradient")
    assert len(passes) == 4 * 4


@pytest.mark.parametrize("pair", [(0, 1), (3, 1)])
def test_gradients_on_both_tasks_samples_are_autograds(load, views, pair):
    vectors = load()
    evidence = Profiles(vectors, views)
    tasks = [TASKS[one] for one in pair]
    rows = {view: [] for view in VIEWS}
    for model in tasks:
        encoder = Encoder()
        encoder.load_state_dict(
            {name.removeprefix("visual."): value for name, value in vectors.model(model).state_dict().items()}
        )
        # In the order of the tasks' names, whichever of the two models it is.
        images = [views.calibration[task].tensors["images"].clone().requires_grad_() for task in tasks]
        losses = [
            cross_entropy(
                normalize(encoder(some), dim=-1) @ views.heads[task].T,
                views.calibration[task].labels,
                reduction="sum",
            )
            for task, some in zip(tasks, images, strict=True)
        ]
        loss = sum(losses) / sum(map(len, images))
        found = torch.autograd.grad(loss, [*encoder.parameters(), *images])
        parts = {"encoder_gradient": found[:-2], "input_gradient": found[-2:]}
        for view, tensors in parts.items():
            rows[view].append(torch.cat([one.flatten() for one in tensors]).double().numpy())
    for view, (x, y) in rows.items():
        expected = [[x @ x, x @ y], [y @ x, y @ y]]
        np.testing.assert_allclose(evidence.shared_grams(view)[pair], expected, rtol=1e-4)
        lengths = np.linalg.norm(x) * np.linalg.norm(y)
        assert shared.dot_product(evidence, view)[pair] == pytest.approx(x @ y, rel=1e-4)
        assert shared.cosine_similarity(evidence, view)[pair] == pytest.approx(x @ y / lengths, rel=1e-4)
        assert shared.l2_distance(evidence, view)[pair] == pytest.approx(np.linalg.norm(x - y), rel=1e-4)


def test_both_directions_of_a_pair_hold_the_same(load, views):
    found = Profiles(load(), views).shared_grams("input_gradient")
    np.testing.assert_array_equal(found, np.flip(found.transpose(1, 0, 2, 3), (2, 3)))
    np.testing.assert_array_equal(found, found.transpose(0, 1, 3, 2))
    assert (np.linalg.eigvalsh(found) > -1e-12).all()
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0, 0] = 1


def test_a_model_beside_itself_has_its_own_gradient(load, views):
    evidence = Profiles(load(tasks=("a", "b")), views)
    diagonal = np.einsum("aaij->aij", evidence.shared_grams("encoder_gradient"))
    own = np.diag(evidence.gram("encoder_gradient"))
    np.testing.assert_allclose(diagonal, own[:, None, None] * np.ones((2, 2, 2)), rtol=1e-12)


def test_blocks_change_nothing(load, views, monkeypatch):
    expected = [Profiles(load(), views).shared_grams(view) for view in VIEWS]
    monkeypatch.setattr(grams, "BLOCK", 5)
    for view, found in zip(VIEWS, expected, strict=True):
        np.testing.assert_allclose(Profiles(load(), views).shared_grams(view), found, rtol=1e-12)


def test_order_and_company_change_no_pair(load, views, tmp_path, passes):
    store = Store(tmp_path / "store")
    first = Profiles(load(store, ("a", "b", "c")), views).shared_grams("encoder_gradient")
    # A model that joins costs its own pass and two for each of its pairs; what is known is found.
    passes.clear()
    joined = Profiles(load(Store(tmp_path / "store"), ("d", "c", "b", "a")), views)
    second = joined.shared_grams("encoder_gradient")
    assert len(passes) == 1 + 2 * 3
    np.testing.assert_array_equal(second[np.ix_([3, 2, 1], [3, 2, 1])], first)
    passes.clear()
    Profiles(load(Store(tmp_path / "store")), replace(views, batch_size=2)).shared_grams("input_gradient")
    assert not passes


def test_changed_evidence_is_computed_again(load, views, tmp_path, passes):
    Profiles(load(Store(tmp_path / "store")), views).shared_grams("encoder_gradient")
    images, labels = views.calibration["a"].tensors["images"], views.calibration["a"].labels
    for changed in (
        {"heads": {**views.heads, "a": views.heads["a"] + 1}},
        {"calibration": {**views.calibration, "a": samples_of(images, 1 - labels)}},
        {"calibration": {**views.calibration, "a": samples_of(images + 1, labels)}},
    ):
        passes.clear()
        Profiles(load(Store(tmp_path / "store")), replace(views, **changed)).shared_grams("encoder_gradient")
        assert len(passes) == 1 + 2 * 3, "the pairs of 'a' alone"
    passes.clear()
    other = replace(views, configuration={"heads": 2})
    Profiles(load(Store(tmp_path / "store")), other).shared_grams("encoder_gradient")
    assert len(passes) == 4 * 4


def test_a_killed_run_goes_on_where_it_stopped(load, views, tmp_path, passes):
    class KilledError(Exception):
        pass

    def progress(items, description, total):
        for done, item in enumerate(items):
            if description == "shared gradients" and done == 4:
                raise KilledError
            yield item

    with pytest.raises(KilledError):
        Profiles(load(Store(tmp_path / "store")), views, Run(progress=progress)).shared_grams(
            "encoder_gradient"
        )
    passes.clear()
    store = Store(tmp_path / "store")
    Profiles(load(store), views).shared_grams("encoder_gradient")
    assert (store.found["shared_gradient"], store.computed["shared_gradient"]) == (4, 6)
    assert len(passes) == 0 + 2 * 3


def test_gradients_live_no_longer_than_their_pair(load, views, monkeypatch):
    import gc
    import weakref

    alive = []
    whole = gradients.task_gradients

    def watched(*arguments, **options):
        found = whole(*arguments, **options)
        alive.append(weakref.ref(found))
        gc.collect()
        assert sum(one() is not None for one in alive) <= 2
        return found

    monkeypatch.setattr(gradients, "task_gradients", watched)
    # Collections look at this test's objects alone, not at everything that other tests and imports left.
    gc.freeze()
    Profiles(load(), views).shared_grams("encoder_gradient")
    assert len(alive) == 4 * 4


def test_what_cannot_be_computed_is_named(load, views):
    with pytest.raises(
        UserError, match="one of the views encoder_gradient, input_gradient; got 'activation'"
    ):
        Profiles(load(), views).shared_grams("activation")
    with pytest.raises(UserError, match="require images and heads"):
        Profiles(load()).shared_grams("encoder_gradient")
    images, labels = views.calibration["b"].tensors["images"], views.calibration["b"].labels
    broken = replace(views, calibration={**views.calibration, "b": samples_of(images * torch.inf, labels)})
    with pytest.raises(
        UserError, match=r"encoder_gradient of .*'b'.* on the samples of both tasks is not finite"
    ):
        Profiles(load(), broken).shared_grams("encoder_gradient")
    without = replace(views, heads={"a": views.heads["a"]})
    with pytest.raises(UserError, match="no zero-shot head for 'b'"):
        Profiles(load(), without).shared_grams("encoder_gradient")
