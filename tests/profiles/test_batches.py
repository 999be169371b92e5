import pytest
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.profiles.batches import fitting_batch_size

WIDTH, DEPTH = 256, 6
ONE = Inputs({"images": torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))})


@pytest.fixture
def encoder():
    return nn.Sequential(*[layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())])


@pytest.fixture
def weights(encoder):
    return sum(parameter.nbytes for parameter in encoder.parameters())


# A row of 256 numbers is saved once per layer and nonlinearity, and the input once.
SAVED_OF_ONE_IMAGE = (2 * DEPTH + 1) * WIDTH * 4


@pytest.mark.parametrize("images", [1, 7, 40])
def test_what_is_saved_of_the_images_fits(encoder, weights, images):
    state = dict(encoder.state_dict())
    memory = 3 * weights + 1.5 * SAVED_OF_ONE_IMAGE * (images + 0.5)
    found = fitting_batch_size(encoder, state, ONE, memory, 100)
    # A linear layer's input is the output of the nonlinearity before it: one memory, counted once.
    assert images <= found <= 2 * images + 1


def test_one_image_always_passes_and_no_more_than_asked_for(encoder):
    state = dict(encoder.state_dict())
    assert fitting_batch_size(encoder, state, ONE, 0, 100) == 1
    assert fitting_batch_size(encoder, state, ONE, 2**40, 100) == 100


def test_the_encoder_is_left_as_it_was(encoder):
    encoder.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    fitting_batch_size(encoder, dict(encoder.state_dict()), ONE, 2**30, 8)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
