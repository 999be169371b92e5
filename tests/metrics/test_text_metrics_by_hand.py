"""The 28 published metrics of a text encoder against transformers' own BERT, plain autograd and NumPy.

The witness reads one text at a time, without padding, in float64, and knows nothing of modules of this package.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from mergeability.data.inputs import Inputs
from mergeability.examples import tiny_text_model
from mergeability.metrics.catalogue import CATALOGUE, CATEGORIES
from mergeability.metrics.measure import measure
from mergeability.models import TextModel
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints

K, COUNT = 10, 100
# Of different lengths, so that batches are padded; the last one of `b` is cut to what the model takes.
TEXTS = {
    "a": ["a red square", "the small blue circle is not dark", "star", "one two three", "a moon"],
    "b": [
        "not a star",
        "big",
        "the light moon is on the dark star",
        "two circle",
        "green green red blue red three in",
    ],
    "c": ["three", "the red moon", "a big big big star", "is the square in the circle", "one"],
}
CLASSES = {"a": 2, "b": 3, "c": 4}
PUBLISHED = [
    *CATEGORIES["geometry"], *CATEGORIES["effective rank"], *CATEGORIES["subspace"], *CATEGORIES["activation"],
    *CATEGORIES["gradient"],
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A base and three models of it, with a head and texts for each."""

    model: TextModel
    states: dict[str, dict[str, Tensor]]
    heads: dict[str, Tensor]
    labels: dict[str, Tensor]
    folder: Path

    def measured(self, batch_size: int):
        paths = {name: self.folder / f"{name}.safetensors" for name in self.states}
        for name, state in self.states.items():
            checkpoints.save(paths[name], state)
        vectors = TaskVectors.load({task: paths[task] for task in TEXTS}, paths["base"], towers="both")
        samples = {
            task: Inputs({"tokens": self.model.tokenize(texts)}, self.labels[task])
            for task, texts in TEXTS.items()
        }
        views = Views(self.model.build(), self.heads, samples, batch_size=batch_size)
        return measure(Profiles(vectors, views), {name: CATALOGUE[name].metric for name in PUBLISHED})

    def network(self, name: str) -> BertModel:
        network = BertModel(BertConfig(**self.model.configuration), add_pooling_layer=False)
        network.load_state_dict(self.states[name])
        return network.double().eval()

    def words(self, text: str) -> Tensor:
        tokens = self.model.tokenize([text])[0]
        return tokens[tokens != 0]

    def activation(self, task: str) -> np.ndarray:
        """Average the outputs of the last layer over the tokens of a text, then over the texts of all tasks."""
        network = self.network(task)
        with torch.no_grad():
            rows = [
                network(input_ids=self.words(text)[None]).last_hidden_state[0].mean(0)
                for texts in TEXTS.values()
                for text in texts
            ]
        return torch.stack(rows).mean(0).numpy()

    def gradients(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Differentiate the mean loss of a task's texts: towards all weights, and towards each word's embedding."""
        network = self.network(task)
        weight = network.embeddings.word_embeddings.weight
        losses, embedded = [], []
        for text, label in zip(TEXTS[task], self.labels[task].tolist(), strict=True):
            words = weight[self.words(text)]
            words.retain_grad()
            feature = network(inputs_embeds=words[None]).last_hidden_state[0].sum(0) / len(words)
            logits = self.heads[task].double() @ (feature / (feature @ feature).sqrt())
            losses.append(torch.log(torch.exp(logits).sum()) - logits[label])
            embedded.append(words)
        (sum(losses) / len(losses)).backward()
        inputs = np.zeros((len(embedded), 8, 16))
        for row, words in zip(inputs, embedded, strict=True):
            assert words.grad is not None
            row[: len(words)] = words.grad.numpy()
        parameters = [parameter.grad.numpy().ravel() for _, parameter in sorted(network.named_parameters())]
        return np.concatenate(parameters), inputs.ravel()

    def deltas(self, task: str) -> dict[str, np.ndarray]:
        return {
            name: self.states[task][name].double().numpy() - base.double().numpy()
            for name, base in sorted(self.states["base"].items())
        }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = tiny_text_model()
    base = checkpoints.load(f"{model.folder}/model.safetensors")
    draw = torch.Generator().manual_seed(5)
    states = {"base": base}
    for task in TEXTS:
        states[task] = {
            name: value + 0.05 * torch.randn(value.shape, generator=draw) for name, value in base.items()
        }
    heads, labels = {}, {}
    for task, count in CLASSES.items():
        head = torch.randn(count, 16, generator=draw)
        heads[task] = 5 * torch.nn.functional.normalize(head, dim=1)
        labels[task] = torch.randint(0, count, (len(TEXTS[task]),), generator=draw)
    return Case(model, states, heads, labels, tmp_path_factory.mktemp("text"))


def geometry(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    lengths = np.sqrt(x @ x), np.sqrt(y @ y)
    return {
        "cosine_similarity": x @ y / lengths[0] / lengths[1],
        "dot_product": x @ y,
        "l2_distance": np.sqrt(((x - y) ** 2).sum()),
        "magnitude_ratio": min(lengths) / max(lengths),
    }


def entropy_rank(x: np.ndarray, y: np.ndarray) -> float:
    values = np.linalg.svd(np.stack([x, y]), compute_uv=False)
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def by_hand(case: Case, a: str, b: str) -> dict[str, float]:
    """Compute the 28 metrics of a pair from their definitions."""
    deltas = [case.deltas(task) for task in (a, b)]
    flat = [np.concatenate([value.ravel() for value in one.values()]) for one in deltas]
    found = {f"task_vector_{name}": value for name, value in geometry(*flat).items()}
    found["weight_space_angle"] = np.degrees(np.arccos(found["task_vector_cosine_similarity"]))
    first, second = np.linalg.svd(np.stack(flat), compute_uv=False)
    rank = entropy_rank(*flat)
    found |= {
        "effective_rank": rank,
        "effective_rank_mergeability_score": 2 - rank,
        "stable_rank": (first + second) ** 2 / (first**2 + second**2),
        "spectral_gap": (first - second) / first,
        "singular_value_ratio": second / first,
    }
    tensors = list(zip(*(one.values() for one in deltas), strict=True))
    layerwise = np.average(
        [entropy_rank(x.ravel(), y.ravel()) for x, y in tensors],
        weights=[np.linalg.norm(x) + np.linalg.norm(y) for x, y in tensors],
    )
    found["layerwise_effective_rank"] = layerwise
    found["layerwise_effective_rank_mergeability_score"] = 2 - layerwise
    found |= overlaps([(x, y) for x, y in tensors if x.ndim == 2])
    activations = geometry(*(case.activation(task) for task in (a, b)))
    found |= {f"activation_{name}": value for name, value in activations.items()}
    for place, kind in enumerate(("encoder_gradient", "input_gradient")):
        values = geometry(*(case.gradients(task)[place] for task in (a, b)))
        found |= {f"{kind}_{name}": value for name, value in values.items() if name != "magnitude_ratio"}
    return found


def overlaps(matrices: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in CATEGORIES["subspace"]}
    for x, y in matrices:
        (u, s, v), (w, t, z) = (np.linalg.svd(one, full_matrices=False) for one in (x, y))
        s, t, k = s[:COUNT], t[:COUNT], min(K, *x.shape)
        found["singular_value_overlap"].append(s @ t / np.linalg.norm(s) / np.linalg.norm(t))
        found["subspace_overlap"].append(np.linalg.norm(u[:, :k].T @ w[:, :k]) / k)
        for end, rows in (("top", slice(k)), ("bottom", slice(-k, None))):
            cosines = np.linalg.svd(v[rows] @ z[rows].T, compute_uv=False)
            found[f"right_subspace_overlap_{end}_k"].append(np.linalg.norm(cosines) / np.sqrt(k))
            found[f"interaction_matrix_overlap_{end}_k"].append(np.mean(cosines**2))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_28_published_metrics_from_first_principles(case, batch_size):
    table = case.measured(batch_size)
    assert len(PUBLISHED) == 28
    assert set(table.columns) == set(PUBLISHED)
    for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
        expected = by_hand(case, a, b)
        assert expected.keys() == set(PUBLISHED)
        for name, value in expected.items():
            assert table.loc[(a, b), name] == pytest.approx(value, rel=2e-4, abs=1e-6), (name, a, b)


def test_texts_are_padded_and_cut_in_this_case(case):
    lengths = {task: [len(case.words(text)) for text in texts] for task, texts in TEXTS.items()}
    assert all(len(set(found)) > 2 for found in lengths.values())
    assert max(lengths["b"]) == 8, "nine words and two marks were cut to eight"
