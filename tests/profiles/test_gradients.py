import numpy as np
import pytest
import torch
from torch import nn

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.profiles.gradients import task_gradients

CLASSES, WIDTH, PIXELS = 4, 5, 12


class LinearEncoder(nn.Module):
    """Features W x, so that gradients can be derived by hand; dropout shows the mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.project = nn.Linear(PIXELS, WIDTH, bias=False)
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, images):
        return self.project(self.dropout(images.flatten(1)))


def samples_of(images, labels):
    return Inputs({"images": images}, labels)


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, 2, 2, generator=generator)
    labels = torch.randint(0, CLASSES, (7,), generator=generator)
    head = 3 * nn.functional.normalize(torch.randn(CLASSES, WIDTH, generator=generator), dim=1)
    state = {"project.weight": torch.randn(WIDTH, PIXELS, generator=generator), "spare": torch.ones(2)}
    return images, labels, head, state


def by_hand(images, labels, head, weight):
    """Differentiate CE(H · Wx/‖Wx‖) by the chain rule, one sample after the other, in float64."""
    of_weight, of_inputs = np.zeros(weight.shape), []
    for image, label in zip(images.reshape(len(images), -1), labels, strict=True):
        z = weight @ image
        length = np.linalg.norm(z)
        unit = z / length
        logits = head @ unit
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        of_unit = head.T @ (probabilities - np.eye(len(head))[label])
        of_features = (of_unit - unit * (unit @ of_unit)) / length
        of_weight += np.outer(of_features, image)
        of_inputs.append(weight.T @ of_features)
    return of_weight / len(images), np.stack(of_inputs).reshape(images.shape) / len(images)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_both_gradients_agree_with_the_chain_rule_at_any_batch_size(samples, batch_size):
    images, labels, head, state = samples
    arrays = [tensor.double().numpy() for tensor in (images, head, state["project.weight"])]
    of_weight, of_inputs = by_hand(arrays[0], labels.numpy(), arrays[1], arrays[2])
    gradients = task_gradients(
        LinearEncoder(), state, head, samples_of(images, labels), batch_size=batch_size
    )
    np.testing.assert_allclose(gradients.encoder["project.weight"].numpy(), of_weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients.inputs.numpy(), of_inputs, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_used_have_gradient_zero(samples):
    images, labels, head, state = samples
    assert not task_gradients(LinearEncoder(), state, head, samples_of(images, labels)).encoder["spare"].any()


def test_nothing_that_is_given_changes(samples):
    images, labels, head, state = samples
    encoder = LinearEncoder()
    given = [*samples[:3], *state.values(), *encoder.state_dict().values()]
    before = [tensor.clone() for tensor in given]
    random_state = torch.get_rng_state()
    # Also inside a context that switches gradients off.
    with torch.no_grad():
        task_gradients(encoder, state, head, samples_of(images, labels))
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert encoder.training
    assert encoder.dropout.training
    assert encoder.project.weight.grad is None
    assert not any(tensor.requires_grad for tensor in (images, head, *state.values()))


def test_what_cannot_be_differentiated_is_named(samples):
    images, labels, head, state = samples
    with pytest.raises(UserError, match="labels from 0 to 1"):
        task_gradients(LinearEncoder(), state, head[:2], samples_of(images, labels))
    with pytest.raises(UserError, match="at least one"):
        task_gradients(LinearEncoder(), state, head, samples_of(images[:0], labels[:0]))
