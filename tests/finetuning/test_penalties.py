"""Penalties: their gradients against central differences of loss + λR, in float64 on a small network."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mergeability.errors import UserError
from mergeability.finetuning.objective import Step, cross_entropy
from mergeability.finetuning.penalties.grad_magnitude import GradMagnitude
from mergeability.finetuning.penalties.l2_to_init import L2ToInit


class Problem:
    """A two-layer encoder, a head and one batch; parameters moved away from their initial values."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)).to(dtype)
        for parameter in self.encoder.parameters():
            parameter.data = normal(*parameter.shape)
        self.parameters = list(self.encoder.parameters())
        self.initial = [parameter.detach() + 0.3 * normal(*parameter.shape) for parameter in self.parameters]
        self.head, self.images = normal(6, 3), normal(8, 5)
        self.labels = torch.arange(8) % 6

    def loss(self) -> torch.Tensor:
        return cross_entropy(self.encoder, self.head, self.images, self.labels)[0]

    def step(self) -> Step:
        return Step(self.loss(), self.loss, self.parameters, self.initial)

    def central_difference(self, function: Callable[[], float], width: float = 1e-5) -> list[torch.Tensor]:
        """Differentiate by (f(θ + w) − f(θ − w)) / 2w, entry by entry."""
        gradients = []
        for parameter in self.parameters:
            gradient = torch.zeros_like(parameter)
            for position in range(parameter.numel()):
                entry, there = parameter.data.view(-1), []
                before = entry[position].item()
                for sign in (1, -1):
                    entry[position] = before + sign * width
                    there.append(function())
                entry[position] = before
                gradient.view(-1)[position] = (there[0] - there[1]) / (2 * width)
            gradients.append(gradient)
        return gradients

    def gradient_norm_squared(self) -> float:
        return sum(g.square().sum().item() for g in torch.autograd.grad(self.loss(), self.parameters))

    def distance_squared(self) -> float:
        return sum((p - q).square().sum().item() for p, q in zip(self.parameters, self.initial, strict=True))


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    ("penalty", "value", "tolerance"),
    [
        (L2ToInit(strength=0.7), Problem.distance_squared, 1e-7),
        (GradMagnitude(strength=0.7, estimator="exact"), Problem.gradient_norm_squared, 1e-7),
        # The error of a forward difference is of order r; at r = 1e-5 in float64 that is all there is.
        (GradMagnitude(strength=0.7, radius=1e-5), Problem.gradient_norm_squared, 1e-4),
    ],
    ids=["l2_to_init", "grad_magnitude exact", "grad_magnitude finite_difference"],
)
def test_gradient_is_that_of_loss_plus_strength_times_value(penalty, value, tolerance):
    problem = Problem()
    gradients, reported = penalty.gradients(problem.step())
    assert reported.item() == pytest.approx(value(problem), rel=1e-9)
    expected = problem.central_difference(lambda: problem.loss().item() + 0.7 * value(problem))
    plain = problem.central_difference(lambda: problem.loss().item())
    assert (flat(expected) - flat(plain)).norm() > 0.1 * flat(plain).norm(), "the penalty must matter here"
    error = (flat(gradients) - flat(expected)).norm() / flat(expected).norm()
    assert error < tolerance


def test_estimators_agree_in_float32_at_the_default_radius():
    exact, _ = GradMagnitude(strength=1, estimator="exact").gradients(Problem(torch.float32).step())
    finite, _ = GradMagnitude(strength=1).gradients(Problem(torch.float32).step())
    assert (flat(finite) - flat(exact)).norm() / flat(exact).norm() < 5e-3


def test_weights_are_restored_bit_for_bit():
    problem = Problem(torch.float32)
    before = [parameter.detach().clone() for parameter in problem.parameters]
    GradMagnitude(strength=1).gradients(problem.step())
    assert all(torch.equal(now, then) for now, then in zip(problem.parameters, before, strict=True))


def test_weights_are_restored_when_the_second_pass_fails():
    problem = Problem()
    before = [parameter.detach().clone() for parameter in problem.parameters]

    def fails() -> torch.Tensor:
        raise KeyboardInterrupt

    step = Step(problem.loss(), fails, problem.parameters, problem.initial)
    with pytest.raises(KeyboardInterrupt):
        GradMagnitude(strength=1).gradients(step)
    assert all(torch.equal(now, then) for now, then in zip(problem.parameters, before, strict=True))


def test_no_gradient_is_left_behind_in_grad():
    problem = Problem()
    GradMagnitude(strength=1).gradients(problem.step())
    L2ToInit(strength=1).gradients(problem.step())
    assert all(parameter.grad is None for parameter in problem.parameters)


def test_a_stationary_point_has_no_correction():
    problem = Problem()
    nothing = sum(parameter.sum() for parameter in problem.parameters) * 0.0
    step = Step(nothing, lambda: pytest.fail("no direction to step in"), problem.parameters, problem.initial)
    gradients, value = GradMagnitude(strength=1).gradients(step)
    assert value.item() == 0
    assert flat(gradients).abs().max() == 0


def test_the_step_is_longer_under_reduced_precision():
    def moved(reduced: bool) -> float:
        problem, lengths = Problem(), []
        before = flat(problem.parameters).clone()

        def again() -> torch.Tensor:
            lengths.append((flat(problem.parameters) - before).norm().item())
            return problem.loss()

        step = Step(problem.loss(), again, problem.parameters, problem.initial, reduced_precision=reduced)
        GradMagnitude(strength=1).gradients(step)
        return lengths[0]

    assert moved(False) == pytest.approx(1e-3)
    assert moved(True) == pytest.approx(1e-2)


@pytest.mark.parametrize("strength", [-1, -1e-9, math.nan, math.inf])
@pytest.mark.parametrize("penalty", [L2ToInit, GradMagnitude])
def test_a_strength_that_is_no_strength_is_refused(penalty, strength):
    with pytest.raises(UserError, match=r"reg\.lambda .* finite number"):
        penalty(strength=strength)


def test_an_unknown_estimator_or_radius_is_refused():
    with pytest.raises(UserError, match="finite_difference or exact"):
        GradMagnitude(strength=1, estimator="guess")
    with pytest.raises(UserError, match="must be positive"):
        GradMagnitude(strength=1, radius=0.0)
