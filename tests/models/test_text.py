"""A model of texts: its files, tokens, features and heads, and every kind of evidence checked against autograd."""

import json
import math
import shutil
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import BertConfig, BertModel

from mergeability.data import Images, ImageSource, Inputs, Rendered, Task, Texts  # noqa: F401
from mergeability.errors import UserError
from mergeability.examples import tiny_task, tiny_text_model
from mergeability.models import TextModel
from mergeability.models.features import features
from mergeability.profiles.activations import sample_activations
from mergeability.profiles.encoders import last_layer
from mergeability.profiles.fisher import fisher_roots
from mergeability.profiles.gradients import task_gradients
from mergeability.profiles.linear_inputs import input_grams
from mergeability.store import Store
from mergeability.weights import checkpoints

_WORDS = {"train": "one", "validation": "two", "test": "three"}
SENTENCES = ["a red square", "the small blue circle is not dark", "star"]


class Colours:
    """A source of six texts per split."""

    def load(self, split):
        texts = [
            f"{size} red {shape}"
            for size in ("a big", "a small", _WORDS[split])
            for shape in ("square", "circle")
        ]
        return Texts(texts, torch.tensor([0, 1] * 3))


def task(source=None):
    return Task("shapes", source or Colours(), ["square", "circle"], ["a {}", "the {}"], epochs=1)


@pytest.fixture
def model():
    return tiny_text_model()


@pytest.fixture
def encoder(model):
    return model.build()


@pytest.fixture
def plain(model):
    """The same network as transformers builds and loads it."""
    network = BertModel(BertConfig(**model.configuration), add_pooling_layer=False)
    network.load_state_dict(checkpoints.load(model.folder / "model.safetensors"))
    return network.eval()


def padded(model, sentences=SENTENCES):
    tokens = model.tokenize(sentences)
    return tokens, tokens != 0


def test_features_are_the_mean_over_tokens_of_the_last_layer_of_transformers(model, encoder, plain):
    tokens, mask = padded(model)
    for row, found in zip(range(3), encoder(tokens), strict=True):
        alone = tokens[row][mask[row]][None]
        assert torch.allclose(plain(input_ids=alone).last_hidden_state[0].mean(0), found, atol=1e-6)


def test_padding_changes_nothing(model, encoder):
    tokens, _ = padded(model)
    longer = torch.cat([tokens, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    assert torch.equal(encoder(longer), encoder(tokens))


def test_a_text_without_tokens_has_features_of_zero_instead_of_nan(encoder):
    assert torch.equal(encoder(torch.zeros(2, 4, dtype=torch.int64)), torch.zeros(2, 16))


def test_long_texts_are_cut_and_counted(model):
    class Long(Colours):
        def load(self, split):
            return Texts(["red " * 9, "a moon"], torch.tensor([0, 1]))

    tokens = model.tokenize(["red " * 9])
    assert tokens.shape == (1, 8)
    assert tokens[0, -1] == 3
    assert "1 of 2 texts of the test split" in " ".join(model.task_remarks(task(Long())))
    assert model.task_remarks(task()) == []


def test_the_head_is_the_scaled_mean_of_unit_embeddings(model, encoder):
    head = model.head(encoder, ["square", "circle"], ["a {}", "the {}"])
    for row, name in zip(head, ["square", "circle"], strict=True):
        units = normalize(encoder(model.tokenize([f"a {name}", f"the {name}"])), dim=-1)
        mean = units.mean(0)
        assert torch.allclose(row, 20 * mean / mean.norm(), atol=1e-5)


def by_hand(model, plain, head, labels):
    """Losses of the samples from the network of transformers, with embeddings looked up by hand; and the embeddings."""
    losses, embedded = [], []
    for sentence, label in zip(SENTENCES, labels, strict=True):
        tokens = model.tokenize([sentence])
        tokens = tokens[:, : int((tokens != 0).sum())]
        words = plain.embeddings.word_embeddings.weight[tokens].detach().requires_grad_()
        mean = plain(inputs_embeds=words).last_hidden_state.mean(1)
        losses.append(cross_entropy(normalize(mean, dim=-1) @ head.T, torch.tensor([label])))
        embedded.append(words)
    return losses, embedded


def test_gradients_are_those_of_autograd_and_zero_on_padding(model, encoder, plain):
    labels = torch.tensor([0, 1, 1])
    head = model.head(encoder, ["square", "circle"], ["a {}"])
    tokens, mask = padded(model)
    found = task_gradients(
        encoder, encoder.state_dict(), head, Inputs({"tokens": tokens}, labels), batch_size=2
    )
    losses, embedded = by_hand(model, plain, head, labels.tolist())
    assert found.inputs.shape == (3, 8, 16)
    for row, (loss, words) in enumerate(zip(losses, embedded, strict=True)):
        (expected,) = torch.autograd.grad(loss / 3, words, retain_graph=True)
        assert torch.allclose(found.inputs[row][mask[row]], expected[0], atol=1e-6)
        assert torch.equal(found.inputs[row][~mask[row]], torch.zeros_like(found.inputs[row][~mask[row]]))
    query = plain.encoder.layer[0].attention.self.query.weight
    (expected,) = torch.autograd.grad(sum(losses) / 3, query)
    assert torch.allclose(found.encoder["encoder.layer.0.attention.self.query.weight"], expected, atol=1e-6)
    # The matrix of word embeddings: the sum of the gradients of the places of each word.
    expected = torch.zeros(32, 16).index_add_(0, tokens[mask], found.inputs[mask])
    assert torch.allclose(found.encoder["embeddings.word_embeddings.weight"], expected, atol=1e-6)


def test_activations_are_means_over_tokens_and_not_over_padding(model, encoder, plain):
    tokens, mask = padded(model)
    assert last_layer(encoder) == "encoder.layer.0"
    found = sample_activations(encoder, encoder.state_dict(), Inputs({"tokens": tokens}), batch_size=2)
    for row in range(3):
        outputs = []
        hook = plain.encoder.layer[0].register_forward_hook(lambda _m, _i, output: outputs.append(output))  # noqa: B023
        plain(input_ids=tokens[row][mask[row]][None])
        hook.remove()
        output = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        assert torch.allclose(found[row], output[0].mean(0), atol=1e-6)


def test_inputs_of_linear_layers_leave_padding_out(model, encoder, plain):
    tokens, mask = padded(model)
    grams = input_grams(encoder, encoder.state_dict(), Inputs({"tokens": tokens}), batch_size=2)
    (query,) = [gram for part, gram in grams.items() if part.weight.endswith("self.query.weight")]
    rows = torch.cat([plain.embeddings(input_ids=tokens[row][mask[row]][None])[0] for row in range(3)])
    assert torch.allclose(query, rows.T @ rows, rtol=1e-4, atol=1e-5)


def test_fisher_information_is_the_mean_of_squared_gradients(model, encoder, plain):
    labels = torch.tensor([0, 1, 1])
    head = model.head(encoder, ["square", "circle"], ["a {}"])
    tokens, _ = padded(model)
    found = fisher_roots(encoder, encoder.state_dict(), head, Inputs({"tokens": tokens}, labels))
    losses, _ = by_hand(model, plain, head, labels.tolist())
    weight = plain.encoder.layer[0].output.dense.weight
    squares = [torch.autograd.grad(loss, weight)[0] ** 2 for loss in losses]
    assert torch.allclose(found["encoder.layer.0.output.dense.weight"], (sum(squares) / 3).sqrt(), atol=1e-6)


def test_the_whole_encoder_differs_from_the_base_without_a_pooler(encoder):
    assert not any("pooler" in name for name in encoder.state_dict())
    assert features(encoder, Inputs({"tokens": torch.tensor([[2, 5, 3]])})).shape == (1, 16)


def test_weights_that_mean_pooling_does_not_use_are_named(model, tmp_path):
    given = folder_with(model, tmp_path, extra={"pooler.dense.weight": torch.zeros(16, 16)})
    assert "pooler.dense.weight" in " ".join(given.remarks)
    assert given.build()(torch.tensor([[2, 5, 3]])).shape == (1, 16)


def folder_with(model, place, *, extra=(), config=(), **changes):
    folder = place / "bert"
    shutil.copytree(model.folder, folder)
    weights = checkpoints.load(folder / "model.safetensors")
    checkpoints.save(folder / "model.safetensors", {**weights, **dict(extra)})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **dict(config)}))
    return TextModel("mine", str(folder), 1e-3, 8, **{"context_length": 8, **changes})


def test_files_of_a_bert_in_transformers_names_with_its_prefix_are_read(model, encoder, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(model.folder, folder)
    weights = checkpoints.load(folder / "model.safetensors")
    checkpoints.save(folder / "model.safetensors", {f"bert.{name}": value for name, value in weights.items()})
    tokens = model.tokenize(SENTENCES)
    assert torch.equal(TextModel("mine", str(folder), 1e-3, 8, 8).build()(tokens), encoder(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, r"to have the SHA-256 0{64}, got [0-9a-f]{64}"),
        ({"extra": {"strange": torch.zeros(2)}}, r"1 tensors differ, such as 'strange'"),
        ({"config": {"hidden_size": 8}}, r"does not fit .*config\.json"),
        ({"config": {"num_attention_heads": 3}}, r"transformers cannot build the network .*multiple"),
        ({"config": {"model_type": "gpt2"}}, r"expected a BERT, got model_type 'gpt2'"),
        ({"context_length": 17}, r"at most 16, the number of positions of the network, got 17"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(model, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        folder_with(model, tmp_path, **changes).build()


def test_missing_files_and_packages_are_named(model, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(model.folder, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        TextModel("mine", str(folder), 1e-3, 8)
    with pytest.raises(UserError, match=r"'no_such_package' is neither.*mergeability\[text\]"):
        TextModel("mine", "no_such_package", 1e-3, 8)
    with pytest.raises(UserError, match=r"'json' in .* contains no folder"):
        TextModel("mine", "json", 1e-3, 8)


def test_a_model_inside_an_installed_package_is_found(model, encoder, tmp_path, monkeypatch):
    package = tmp_path / "package_of_a_bert"
    shutil.copytree(model.folder, package / "files/bert")
    (package / "__init__.py").write_text("raise ImportError('the package is not imported')")
    (package / "files/config.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    given = TextModel("mine", "package_of_a_bert", 1e-3, 8, 8)
    assert given.folder == package / "files/bert"
    tokens = model.tokenize(SENTENCES)
    assert torch.equal(given.tokenize(SENTENCES), tokens)
    assert torch.equal(given.build()(tokens), encoder(tokens))


@pytest.mark.parametrize("pretrained", [None, 3])
def test_what_is_neither_a_folder_nor_a_package_is_refused(pretrained):
    with pytest.raises(UserError, match=f"a folder or an installed Python package, got {pretrained}"):
        TextModel("mine", pretrained, 1e-3, 8)


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    model, tmp_path, monkeypatch, package
):
    given = folder_with(model, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    use = given.architecture_only if package == "transformers" else lambda: given.tokenize(["a star"])
    with pytest.raises(
        UserError, match=rf"Text models require the package {package}: .*mergeability\[text\]"
    ):
        use()


def test_damaged_tokenizers_are_one_sentence(model, tmp_path):
    given = folder_with(model, tmp_path)
    for content in ("{", "[]", '{"version": "1.0"}', '{"model": {"type": "WordPiece", "vocab": []}}'):
        (given.folder / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            given.tokenize(["a star"])


def test_each_kind_of_model_refuses_tasks_of_the_other_kind(model, tiny_model):
    with pytest.raises(UserError, match="'loops' consists of images, but texts are expected"):
        model.samples(tiny_task(), "train", Store())
    with pytest.raises(UserError, match=r"'shapes' consists of texts, but images are expected.*model=minilm"):
        tiny_model().samples(task(), "train", Store())


def test_samples_are_tokens_with_the_labels_of_the_source(model):
    found = model.samples(task(), "validation", Store())
    assert found.rows.shape == (6, 8)
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.fingerprint != model.samples(task(), "test", Store()).fingerprint


def test_dropout_is_off_in_training(model):
    encoder = model.build().train()
    tokens = model.tokenize(SENTENCES)
    assert torch.equal(encoder(tokens), encoder(tokens))
    assert math.isfinite(encoder(tokens).sum().item())
