import numpy as np
import pytest
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.profiles.activations import (
    centred_kernel,
    sample_activations,
)
from mergeability.profiles.encoders import evaluation_mode, last_layer

TOKENS = 5


class TokenEncoder(nn.Module):
    """Images of one row per token, through blocks that take tokens or the batch first."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))

    def forward(self, images):
        tokens = images.transpose(1, 2).flatten(2)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        return self.transformer.resblocks(tokens)


class SmallResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer4 = nn.Conv2d(3, 4, 2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.layer4(images)).flatten(1)


def images(count, seed=0):
    return torch.randn(count, 3, TOKENS, 2, generator=torch.Generator().manual_seed(seed))


def mean_activation(encoder, state, pool, **options):
    return sample_activations(encoder, state, Inputs({"images": pool}), **options).double().mean(0)


def random_state(encoder, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("count", [1, 3, TOKENS, 8])
def test_tokens_and_batch_are_told_apart(batch_first, count):
    encoder = TokenEncoder(batch_first)
    state = random_state(encoder)
    pool = images(count)
    tokens = pool.numpy().transpose(0, 2, 1, 3).reshape(count, TOKENS, 6)
    weight, bias = (state[f"transformer.resblocks.0.{part}"].numpy() for part in ("weight", "bias"))
    # The mean of a linear block's outputs is the block's output at the mean.
    expected = tokens.mean(1) @ weight.T + bias
    for batch_size in (1, 2, 32):
        rows = sample_activations(encoder, state, Inputs({"images": pool}), batch_size=batch_size)
        torch.testing.assert_close(rows, torch.from_numpy(expected), atol=1e-6, rtol=1e-5)
        mean = mean_activation(encoder, state, pool, batch_size=batch_size)
        torch.testing.assert_close(mean, torch.from_numpy(expected).double().mean(0), atol=1e-6, rtol=1e-5)


def test_the_last_feature_map_of_a_cnn_is_averaged_over_places():
    encoder = SmallResNet()
    state = random_state(encoder)
    pool = images(3)
    expected = nn.functional.conv2d(pool, state["layer4.weight"], state["layer4.bias"]).mean((0, 2, 3))
    torch.testing.assert_close(mean_activation(encoder, state, pool).float(), expected)


@pytest.mark.parametrize(("start", "stop"), [(0, 49), (0, 7), (3, 5), (5, 30), (13, 14), (14, 21), (48, 49)])
def test_a_range_of_the_centred_kernel_agrees_with_the_whole(start, stop):
    rows = np.random.default_rng(0).normal(2, 1, size=(7, 3)).astype(np.float32)
    centring = np.eye(7) - 1 / 7
    whole = centring @ rows.astype(np.float64) @ rows.T.astype(np.float64) @ centring
    found = centred_kernel(rows, start, stop)
    np.testing.assert_allclose(found, whole.ravel()[start:stop], atol=1e-12)


@pytest.mark.parametrize("image", [0.0, 0.1, 1e4])
def test_equal_images_have_no_kernel(image):
    rows = np.full((6, 5), image, dtype=np.float32)
    rows[::2] = np.nextafter(rows[::2], np.float32(2 * image))
    assert not centred_kernel(rows, 0, 36).any()
    # A difference that float32 can hold with some digits is geometry.
    rows[0] += np.float32(1e-4 * image)
    assert centred_kernel(rows, 0, 36).any() == (image > 0)


def test_another_layer_can_be_named():
    encoder = SmallResNet()
    state = random_state(encoder)
    assert mean_activation(encoder, state, images(3), layer="norm").shape == (4,)
    with pytest.raises(UserError, match="no layer 'layer9'"):
        mean_activation(encoder, state, images(3), layer="layer9")
    with pytest.raises(UserError, match="at least one"):
        mean_activation(encoder, state, images(0))
    with pytest.raises(
        UserError,
        match=r"Linear contains none of the layers transformer.resblocks, encoder.layer and layer4.*profile\.layer",
    ):
        last_layer(nn.Linear(2, 2))


def test_a_layer_that_mixes_the_images_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Linear(2, 2)

        def forward(self, images):
            return self.rows(images.flatten(0, 1)).mean((0, 1))[None]

    with pytest.raises(
        UserError, match=r"'rows' for one image has shape \(3, 5, 2\): expected batch × tokens"
    ):
        mean_activation(Flat(), random_state(Flat()), images(4), layer="rows")


def test_the_encoder_is_left_as_it_was():
    encoder = SmallResNet()
    encoder.norm.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    mean_activation(encoder, random_state(encoder), images(3))
    assert (encoder.training, encoder.norm.training) == (True, False)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert not encoder.layer4._forward_hooks


def test_modes_return_after_an_error():
    encoder = SmallResNet()
    with evaluation_mode(encoder):
        assert not encoder.norm.training
    with pytest.raises(ZeroDivisionError), evaluation_mode(encoder):
        1 / 0  # noqa: B018
    assert encoder.norm.training


@pytest.mark.parametrize("count", [3, 17])
def test_the_visual_encoder_of_open_clip(count):
    from open_clip.transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = VisionTransformer(
            image_size=16, patch_size=4, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=8
        )
    pool = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    outputs = []
    # The transformer as a whole gives batch × tokens × width in every version; its blocks do not.
    hook = encoder.transformer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        encoder.eval()(pool)
    hook.remove()
    assert outputs[0].shape == (count, 17, 32)
    mean = mean_activation(encoder, dict(encoder.state_dict()), pool, batch_size=2)
    torch.testing.assert_close(mean.float(), outputs[0].mean((0, 1)), atol=1e-5, rtol=1e-4)
