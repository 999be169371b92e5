import numpy as np
import pytest
import torch
from torch import nn

from mergeability.errors import UserError
from mergeability.evaluation.batchnorm import has_batchnorm, recalibrate_batchnorm


class SmallConvolutional(nn.Module):
    """Two batch norms over places, one over features, registered in another order than they are used in."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(4, momentum=0.3)
        self.first = nn.BatchNorm2d(5)
        self.middle = nn.BatchNorm2d(4, affine=False)
        self.unused = nn.BatchNorm2d(2)
        self.without = nn.BatchNorm1d(4, track_running_stats=False)
        self.conv = nn.Conv2d(3, 5, 1)
        self.mix = nn.Conv2d(5, 4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        x = self.dropout(torch.relu(self.first(self.conv(images))))
        return self.last(torch.relu(self.middle(self.mix(x))).mean((2, 3)))


@pytest.fixture
def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SmallConvolutional()
        for value in encoder.parameters():
            nn.init.normal_(value)
    return encoder


@pytest.fixture
def images():
    # Far from zero: a variance by Σx² − n·mean² would lose its digits.
    return 1000 + torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def by_hand(encoder, images):
    """Write the forward pass out in float64 NumPy, normalising by the statistics over all images."""
    state = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    found = {}

    def normalised(x, name):
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axes), x.var(axes, ddof=1)
        found[f"{name}.running_mean"], found[f"{name}.running_var"] = mean, variance
        over = (slice(None), *[None] * (x.ndim - 2))
        x = (x - mean[over]) / np.sqrt(variance[over] + 1e-5)
        return (
            x * state.get(f"{name}.weight", np.ones(len(mean)))[over]
            + state.get(f"{name}.bias", np.zeros(len(mean)))[over]
        )

    def convolved(x, name):
        kernel, bias = state[f"{name}.weight"][:, :, 0, 0], state[f"{name}.bias"]
        return np.einsum("oc,nchw->nohw", kernel, x) + bias[:, None, None]

    x = np.maximum(normalised(convolved(images.double().numpy(), "conv"), "first"), 0)
    x = np.maximum(normalised(convolved(x, "mix"), "middle"), 0)
    normalised(x.mean((2, 3)), "last")
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 256])
def test_statistics_are_those_over_all_images_whatever_the_batch_size(encoder, images, batch_size):
    expected = by_hand(encoder, images)
    found = recalibrate_batchnorm(encoder, images, batch_size=batch_size)
    assert found.keys() - expected.keys() == {"unused.running_mean", "unused.running_var"}
    state = encoder.state_dict()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-3, atol=1e-4, err_msg=name)
        assert torch.equal(found[name], state[name])


def test_the_order_of_the_images_is_irrelevant(encoder, images):
    first = recalibrate_batchnorm(encoder, images, batch_size=4)
    second = recalibrate_batchnorm(encoder, images.flip(0), batch_size=4)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [4, 256])
def test_nothing_else_of_the_encoder_changes(encoder, images, batch_size):
    encoder.train()
    encoder.middle.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    random_state, kept = torch.get_rng_state(), images.clone()
    found = recalibrate_batchnorm(encoder, images, batch_size=batch_size)
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"{norm}.running_{what}" for norm in ("first", "middle", "last") for what in ("mean", "var")
    }
    assert (encoder.training, encoder.first.training, encoder.middle.training) == (True, True, False)
    assert (encoder.last.momentum, encoder.first.momentum) == (0.3, 0.1)
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(images, kept)
    # The caller's own: changing them does not change the encoder.
    found["first.running_mean"].fill_(9)
    assert not (encoder.first.running_mean == 9).any()


@pytest.mark.parametrize(("batch_size", "expected"), [(256, [11]), (4, [1] + 3 * [4, 4, 3])])
def test_one_pass_where_one_batch_holds_all_images_and_never_more_than_a_batch(
    encoder, images, batch_size, expected
):
    passes = []
    encoder.conv.register_forward_pre_hook(lambda _module, inputs: passes.append(len(inputs[0])))
    recalibrate_batchnorm(encoder, images, batch_size=batch_size)
    assert passes == expected


def test_an_encoder_without_batch_norms_is_not_run():
    class Failing(nn.Linear):
        def forward(self, _images):
            raise AssertionError

    assert recalibrate_batchnorm(nn.Sequential(Failing(3, 2), nn.LayerNorm(2)), torch.zeros(2, 3, 1, 1)) == {}
    assert not has_batchnorm(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)))
    assert has_batchnorm(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))


@pytest.mark.parametrize("batch_size", [3, 256])
def test_of_inputs_far_from_zero_every_digit_is_right(images, batch_size):
    found = recalibrate_batchnorm(nn.BatchNorm2d(3), images, batch_size=batch_size)
    values = images.double().transpose(0, 1).flatten(1).numpy()
    np.testing.assert_array_equal(found["running_mean"], values.mean(1).astype(np.float32))
    np.testing.assert_array_equal(found["running_var"], values.var(1, ddof=1).astype(np.float32))


def test_what_has_no_statistics_is_named(encoder, images):
    with pytest.raises(UserError, match="at least one"):
        recalibrate_batchnorm(encoder, images[:0])
    with pytest.raises(UserError, match="'last' receives only one value"):
        recalibrate_batchnorm(encoder, images[:1])
    with pytest.raises(UserError, match="'first' are not finite"):
        recalibrate_batchnorm(encoder, torch.full_like(images, torch.nan), batch_size=4)
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_a_merged_resnet_of_open_clip_works_again_once_its_statistics_are_its_own():
    from open_clip.modified_resnet import ModifiedResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=6, heads=2, image_size=32, width=8)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert has_batchnorm(encoder)
    at_once = recalibrate_batchnorm(encoder, images)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(at_once) == 2 * len(norms)
    outputs = []
    hook = encoder.layer4[0].bn1.register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output.clone())
    )
    with torch.no_grad():
        encoder.eval()(images)
    hook.remove()
    # Weight 1 and bias 0: what leaves a batch norm is standardised.
    np.testing.assert_allclose(outputs[0].mean((0, 2, 3)).numpy(), 0, atol=1e-4)
    np.testing.assert_allclose(outputs[0].var((0, 2, 3)).numpy(), 1, atol=1e-2)
    in_parts = recalibrate_batchnorm(encoder, images, batch_size=4)
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-3, atol=1e-4)
