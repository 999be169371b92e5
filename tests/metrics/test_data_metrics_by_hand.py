"""Every data-dependent metric against plain autograd on an encoder that is written out formula by formula.

The witness works on one image at a time, in float64, and knows nothing of modules, hooks or batches.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.metrics.catalogue import CATALOGUE, CATEGORIES
from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors

TOKENS, PATCH, WIDTH, FEATURES = 4, 12, 5, 7
CLASSES = {"a": 3, "b": 4, "c": 6}
# Neither is the number of tokens, of images, or of the pool's images.
BATCH_SIZES = (2, 3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)

    def forward(self, tokens):
        return tokens + self.dropout(torch.tanh(self.linear(tokens)))


class PatchEncoder(nn.Module):
    """Four patches of an image through two blocks, whose dropout shows the mode."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(PATCH, WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(Block(), Block())
        self.proj = nn.Linear(WIDTH, FEATURES, bias=False)

    def forward(self, images):
        patches = nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
        return self.proj(self.transformer.resblocks(self.embed(patches)).mean(1))


NAMES = tuple(PatchEncoder().state_dict())


def tokens_by_hand(weights, image):
    """Compute the last block's output for one image, 4×5."""
    rows = []
    for top in (0, 2):
        for left in (0, 2):
            patch = image[:, top : top + 2, left : left + 2].reshape(PATCH)
            token = weights["embed.weight"] @ patch + weights["embed.bias"]
            for block in ("transformer.resblocks.0.linear", "transformer.resblocks.1.linear"):
                token = token + torch.tanh(weights[f"{block}.weight"] @ token + weights[f"{block}.bias"])
            rows.append(token)
    return torch.stack(rows)


def loss_by_hand(weights, head, image, label):
    """Compute −log softmax of the scaled cosines at the label."""
    features = weights["proj.weight"] @ (tokens_by_hand(weights, image).sum(0) / TOKENS)
    logits = head @ (features / (features @ features).sqrt())
    return torch.log(torch.exp(logits).sum()) - logits[label]


@dataclass(frozen=True)
class Case:
    """Models, heads and samples in float64."""

    weights: dict
    heads: dict
    samples: dict
    folder: object

    def activations(self, task):
        """One row per image of every task."""
        with torch.no_grad():
            rows = [
                tokens_by_hand(self.weights[task], image).sum(0) / TOKENS
                for name in self.samples
                for image in self.samples[name][0]
            ]
        return torch.stack(rows).numpy()

    def gradients(self, task, of):
        """Differentiate the mean loss over samples of several tasks: towards all weights, and all images."""
        weights = {name: self.weights[task][name].clone().requires_grad_() for name in NAMES}
        images = {name: self.samples[name][0].clone().requires_grad_() for name in of}
        losses = [
            loss_by_hand(weights, self.heads[name], images[name][i], int(label))
            for name in of
            for i, label in enumerate(self.samples[name][1])
        ]
        found = torch.autograd.grad(sum(losses) / len(losses), [*weights.values(), *images.values()])
        flat = [gradient.reshape(-1).numpy() for gradient in found]
        return np.concatenate(flat[: len(NAMES)]), np.concatenate(flat[len(NAMES) :])

    def measured(self, metrics, batch_size):
        """Measure with the code under test, in float32."""
        paths = {task: self.folder / f"{task}.safetensors" for task in ("base", *self.samples)}
        vectors = TaskVectors.load({task: paths[task] for task in self.samples}, paths["base"])
        heads = {task: head.float() for task, head in self.heads.items()}
        samples = {
            task: Inputs({"images": images.float()}, labels)
            for task, (images, labels) in self.samples.items()
        }
        views = Views(PatchEncoder(), heads, samples, batch_size=batch_size)
        return measure(Profiles(vectors, views), metrics)


@pytest.fixture
def make_case(tmp_path):
    def make(counts):
        generator = torch.Generator().manual_seed(11)

        def state(scale):
            shapes = {name: value.shape for name, value in PatchEncoder().state_dict().items()}
            return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

        base = state(0.5)
        states = {"base": base}
        for task in counts:
            change = state(0.15)
            states[task] = {name: base[name] + change[name] for name in NAMES}
        for task, tensors in states.items():
            named = {f"visual.{name}": value for name, value in tensors.items()}
            safetensors.torch.save_file(named, tmp_path / f"{task}.safetensors")
        weights = {
            task: {name: tensor.double() for name, tensor in tensors.items()}
            for task, tensors in states.items()
        }
        heads, samples = {}, {}
        for task, count in counts.items():
            images = torch.randn(count, 3, 4, 4, generator=generator)
            labels = torch.randint(0, CLASSES[task], (count,), generator=generator)
            head = torch.randn(CLASSES[task], FEATURES, generator=generator)
            samples[task] = (images.double(), labels)
            heads[task] = 5 * nn.functional.normalize(head, dim=1).double()
        return Case(weights, heads, samples, tmp_path)

    return make


def agree(table, names, vectors_of_pair):
    """Compare named metrics of every pair with those of the two vectors."""
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        for name in names:
            x, y = vectors_of_pair(name, *pair)
            lengths = np.sqrt(x @ x), np.sqrt(y @ y)
            scale, expected = {
                "cosine_similarity": (1, x @ y / lengths[0] / lengths[1]),
                "dot_product": (lengths[0] * lengths[1], x @ y),
                "l2_distance": (sum(lengths), np.sqrt(((x - y) ** 2).sum())),
                "magnitude_ratio": (1, min(lengths) / max(lengths)),
            }["_".join(name.split("_")[-2:])]
            assert table.loc[pair, name] == pytest.approx(expected, rel=1e-5, abs=2e-6 * scale), (name, pair)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_the_ten_published_metrics_from_first_principles(make_case, batch_size):
    case = make_case({"a": 5, "b": 5, "c": 5})
    activations = {task: case.activations(task).mean(0) for task in CLASSES}
    gradients = {task: case.gradients(task, [task]) for task in CLASSES}

    def vectors(name, *pair):
        if name.startswith("activation"):
            return [activations[task] for task in pair]
        return [gradients[task][name.startswith("input")] for task in pair]

    names = [*CATEGORIES["activation"], *CATEGORIES["gradient"]]
    assert len(names) == 10
    agree(case.measured(None, batch_size), names, vectors)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_gradients_on_the_same_samples_from_first_principles(make_case, batch_size):
    # The tasks may have different numbers of samples: each counts once in the union.
    case = make_case({"a": 5, "b": 2, "c": 4})

    def vectors(name, *pair):
        return [case.gradients(task, pair)["input" in name] for task in pair]

    shared = {name: one.metric for name, one in CATALOGUE.items() if name.startswith("shared_")}
    agree(case.measured(shared, batch_size), shared, vectors)


def hsic(K, L):
    """The biased estimator of Gretton et al. 2005: tr(KHLH) / (n − 1)²."""
    count = len(K)
    H = np.eye(count) - np.ones((count, count)) / count
    return np.trace(K @ H @ L @ H) / (count - 1) ** 2


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_linear_cka_is_normalised_hsic_of_all_images(make_case, batch_size):
    case = make_case({"a": 5, "b": 2, "c": 4})
    kernels = {task: case.activations(task) @ case.activations(task).T for task in CLASSES}
    name = "activation_linear_cka"
    table = case.measured({name: CATALOGUE[name].metric}, batch_size)
    for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
        K, L = kernels[a], kernels[b]
        expected = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
        assert 0.1 < expected < 0.999
        assert table.loc[(a, b), name] == pytest.approx(expected, rel=1e-5)
