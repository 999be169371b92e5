import logging

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.profiles.linear_inputs import LinearPart, input_grams, linear_parts

BLOCK = "transformer.resblocks.{}.{}"


def grams_by_name(encoder, images, **options):
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    samples = Inputs({"images": images})
    return {part.key: gram.numpy() for part, gram in input_grams(encoder, state, samples, **options).items()}


def gram(rows):
    rows = rows.reshape(-1, rows.shape[-1])
    return rows.T @ rows


def agree(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=key)


@pytest.fixture
def tower():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer(
            image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
        )


@pytest.fixture
def images():
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def attended(queries, keys, values, heads):
    """softmax(QKᵀ/√d)V head by head, the heads side by side."""
    size = queries.shape[-1] // heads
    outputs = []
    for head in range(heads):
        q, k, v = (x[..., head * size : (head + 1) * size] for x in (queries, keys, values))
        outputs.append(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(size)) @ v)
    return np.concatenate(outputs, -1)


def transformer_inputs(encoder, images):
    """Write out the encoder in float64 NumPy and collect the inputs of its linear layers."""
    from scipy.special import erf

    state = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    inputs = {}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, weight, bias):
        inputs[f"{weight}[0:{len(state[weight])}]"] = x
        return x @ state[weight].T + state[bias]

    patches = images.double().numpy().reshape(len(images), 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5)
    tokens = patches.reshape(len(images), 4, -1) @ state["conv1.weight"].reshape(16, -1).T
    first = np.broadcast_to(state["class_embedding"], (len(images), 1, 16))
    x = norm(np.concatenate([first, tokens], 1) + state["positional_embedding"], "ln_pre")
    for block in range(2):
        name = BLOCK.format(block, "")
        projected = linear(norm(x, f"{name}ln_1"), f"{name}attn.in_proj_weight", f"{name}attn.in_proj_bias")
        mixed = attended(*np.split(projected, 3, -1), heads=2)
        x = x + linear(mixed, f"{name}attn.out_proj.weight", f"{name}attn.out_proj.bias")
        hidden = linear(norm(x, f"{name}ln_2"), f"{name}mlp.c_fc.weight", f"{name}mlp.c_fc.bias")
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = x + linear(hidden, f"{name}mlp.c_proj.weight", f"{name}mlp.c_proj.bias")
    inputs["proj[0:8]"] = norm(x, "ln_post")[:, 0]
    return inputs


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_layer_of_the_open_clip_tower_agrees_with_the_tower_written_out(tower, images, batch_size):
    expected = {key: gram(rows) for key, rows in transformer_inputs(tower, images).items()}
    assert len(expected) == 2 * 4 + 1
    agree(grams_by_name(tower, images, batch_size=batch_size), expected)


def test_it_is_the_same_where_gradients_are_off_for_good(tower, images):
    expected = grams_by_name(tower, images)
    with torch.inference_mode():
        agree(grams_by_name(tower, images), expected)


def test_which_weights_are_stored_inputs_first_is_seen(tower, images):
    parts = {
        part.weight: part for part in linear_parts(tower, tower.state_dict(), Inputs({"images": images[:1]}))
    }
    assert parts["proj"] == LinearPart("proj", 16, True, 0, 8)
    fused = BLOCK.format(0, "attn.in_proj_weight")
    assert parts[fused] == LinearPart(fused, 16, False, 0, 48)
    out = BLOCK.format(0, "attn.out_proj.weight")
    assert parts[out] == LinearPart(out, 16, False, 0, 16)
    assert not any("conv" in name or "embedding" in name or "bias" in name for name in parts)


class SquareEncoder(nn.Module):
    """Square weights, and weights one wide or one high, in both layouts: their shapes tell nothing."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(12, 12, bias=False)
        self.proj = nn.Parameter(torch.randn(12, 12, generator=generator))
        self.narrow = nn.Linear(12, 1)
        self.wide = nn.Linear(1, 3)
        self.column = nn.Parameter(torch.randn(3, 1, generator=generator))
        self.row = nn.Parameter(torch.randn(1, 5, generator=generator))

    def forward(self, images):
        x = torch.tanh(self.linear(images.flatten(1))) @ self.proj
        return torch.tanh(self.wide(self.narrow(x)) @ self.column) @ self.row


def test_layouts_are_told_apart_where_shapes_do_not():
    encoder = SquareEncoder()
    images = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    parts = {
        part.weight: part
        for part in linear_parts(encoder, encoder.state_dict(), Inputs({"images": images[:1]}))
    }
    assert parts["linear.weight"] == LinearPart("linear.weight", 12, False, 0, 12)
    assert parts["proj"] == LinearPart("proj", 12, True, 0, 12)
    assert parts["narrow.weight"] == LinearPart("narrow.weight", 12, False, 0, 1)
    assert parts["wide.weight"] == LinearPart("wide.weight", 1, False, 0, 3)
    assert parts["column"] == LinearPart("column", 3, True, 0, 1)
    assert parts["row"] == LinearPart("row", 1, True, 0, 5)


class CrossAttention(nn.Module):
    """Queries from other tokens than keys and values, so parts of one fused weight have inputs of their own."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.tokens = nn.Parameter(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, images):
        context = images.flatten(2)
        tokens = self.tokens.expand(len(images), -1, -1)
        if not self.batch_first:
            context, tokens = context.transpose(0, 1), tokens.transpose(0, 1)
        mixed = self.attention(tokens, context, context, need_weights=False)[0]
        return mixed.mean(1 if self.batch_first else 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_parts_of_a_fused_weight_have_inputs_of_their_own(batch_first):
    encoder = CrossAttention(batch_first)
    images = torch.randn(5, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    state = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    weight, bias = state["attention.in_proj_weight"], state["attention.in_proj_bias"]
    context = images.double().numpy().reshape(5, 3, 8)
    tokens = np.broadcast_to(state["tokens"], (5, 2, 8))
    q = tokens @ weight[:8].T + bias[:8]
    k, v = (context @ weight[rows].T + bias[rows] for rows in (slice(8, 16), slice(16, 24)))
    agree(
        grams_by_name(encoder, images, batch_size=2),
        {
            "attention.in_proj_weight[0:8]": gram(tokens),
            "attention.in_proj_weight[8:24]": gram(context),
            "attention.out_proj.weight[0:8]": gram(attended(q, k, v, heads=2)),
        },
    )


def test_the_attention_pooling_of_a_resnet_is_seen():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=6, heads=2, image_size=64, width=8)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    outputs = []
    hook = encoder.layer4.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        encoder.eval()(images)
    hook.remove()
    places = outputs[0].double().numpy().reshape(3, 256, -1).swapaxes(1, 2)
    state = {
        name.removeprefix("attnpool."): value.double().numpy() for name, value in encoder.state_dict().items()
    }
    tokens = np.concatenate([places.mean(1, keepdims=True), places], 1) + state["positional_embedding"]
    q, k, v = (tokens @ state[f"{part}_proj.weight"].T + state[f"{part}_proj.bias"] for part in "qkv")
    agree(
        grams_by_name(encoder, images),
        {
            "attnpool.q_proj.weight[0:256]": gram(tokens),
            "attnpool.k_proj.weight[0:256]": gram(tokens),
            "attnpool.v_proj.weight[0:256]": gram(tokens),
            "attnpool.c_proj.weight[0:6]": gram(attended(q, k, v, heads=2)),
        },
    )


def test_a_weight_used_twice_has_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
            self.second.weight = self.first.weight

        def forward(self, images):
            # In training it would see something else.
            return self.second(torch.tanh(self.first(images.flatten(1) + (5 if self.training else 0))))

    encoder, images = Twice(), torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    rows = images.flatten(1).double().numpy()
    hidden = np.tanh(rows @ encoder.first.weight.detach().double().numpy().T)
    agree(grams_by_name(encoder, images), {"first.weight[0:12]": gram(rows) + gram(hidden)})


def test_products_with_some_columns_of_a_weight_are_no_linear_layer(images):
    """Half of the inputs alone do not say what RegMean needs of the whole layer."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.split, self.whole = nn.Linear(6, 4, bias=False), nn.Linear(4, 2, bias=False)

        def forward(self, images):
            rows = images.mean((2, 3)).repeat(1, 2)
            weight = self.split.weight
            return self.whole(rows[:, :3] @ weight[:, :3].T + rows[:, 3:] @ weight[:, 3:].T)

    encoder = Halves()
    rows = images.mean((2, 3)).repeat(1, 2).numpy()
    agree(
        grams_by_name(encoder, images),
        {"whole.weight[0:2]": gram(rows @ encoder.split.weight.detach().numpy().T)},
    )


def test_the_number_of_rows_at_a_time_changes_nothing(tower, images, monkeypatch):
    expected = grams_by_name(tower, images)
    monkeypatch.setattr("mergeability.profiles.linear_inputs._ROWS", 3)
    agree(grams_by_name(tower, images), expected)


def test_nothing_that_is_given_changes(tower, images):
    tower.train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    random_state, kept = torch.get_rng_state(), images.clone()
    grams_by_name(tower, images)
    assert tower.training
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_linear_layer_that_does_no_work_is_named(tower, images, caplog):
    tower.idle = nn.Linear(2, 3)
    with caplog.at_level(logging.WARNING):
        parts = linear_parts(tower, tower.state_dict(), Inputs({"images": images[:1]}))
    assert not any(part.weight == "idle.weight" for part in parts)
    assert "1 linear layers such as 'idle'" in caplog.text


def test_what_has_no_inputs_is_named(tower, images):
    with pytest.raises(UserError, match="at least one"):
        grams_by_name(tower, images[:0])
    with pytest.raises(UserError, match="are not finite"):
        grams_by_name(tower, torch.full_like(images, torch.nan))
