"""The gradient of every penalty in `conf/reg`: that of L + λR, with the R that the penalty itself reports.

A new penalty is tested by having a YAML, with the settings it has there.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from mergeability.finetuning.objective import Step, cross_entropy, squared_norm
from mergeability.finetuning.penalties.base import Penalty
from mergeability.finetuning.penalties.l2_to_init import L2ToInit

CONF = Path(__file__).parents[2] / "conf"
# Not 1, so that a gradient without its λ is another one.
STRENGTH = 0.7
# Largest error, as a share of λ∇R. Singular vectors are accurate to float32.
TOLERANCE = 1e-5
# Forward differences have an error of the order of their radius, 1e-3 by default: with these settings it vanishes.
FORWARD_DIFFERENCES = {
    "grad_magnitude": "reg.penalty.radius=1e-6",
    "mergeability": "reg.penalty.terms.grad_magnitude.radius=1e-6",
}


def names(folder: Path) -> list[str]:
    return sorted(file.stem for file in (folder / "reg").glob("*.yaml") if file.stem != "none")


def configured(name: str, *overrides: str) -> Penalty:
    """Make a penalty as the command line does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"reg={name}", f"reg.lambda={STRENGTH}", *overrides])
        return instantiate(cfg.reg.penalty, _convert_="all")


class Problem:
    """A small encoder with a convolution and matrices large enough for ten singular vectors, away from its base."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.encoder = nn.Sequential(
            nn.Conv2d(1, 3, 2, stride=2), nn.Flatten(), nn.Linear(12, 11), nn.GELU(), nn.Linear(11, 10)
        ).double()
        self.parameters = list(self.encoder.parameters())
        for parameter in self.parameters:
            parameter.data = 0.5 * normal(*parameter.shape)
        self.initial = [parameter.detach() + 0.2 * normal(*parameter.shape) for parameter in self.parameters]
        self.head, self.images, self.labels = normal(3, 10), normal(6, 1, 4, 4), torch.arange(6) % 3

    def loss(self) -> Tensor:
        return cross_entropy(self.encoder, self.head, self.images, self.labels)[0]

    def difference(
        self,
        penalty: Penalty,
        constants: dict[str, Tensor],
        directions: list[tuple[int, Tensor]],
        width: float = 1e-5,
    ) -> tuple[Tensor, Tensor]:
        """Differentiate L and the reported R along directions of one parameter each: (f(θ + wd) − f(θ − wd)) / 2w."""

        def both() -> Tensor:
            reported = penalty.gradients(self.step(constants))[1]
            return torch.stack([self.loss().detach(), reported])

        found = []
        for index, direction in directions:
            here = self.parameters[index].detach().clone()
            values = []
            for sign in (1, -1):
                self.parameters[index].data = here + sign * width * direction
                values.append(both())
            self.parameters[index].data = here
            found.append((values[0] - values[1]) / (2 * width))
        of_loss, of_value = torch.stack(found, dim=1)
        return of_loss, of_value

    def step(self, constants: dict[str, Tensor]) -> Step:
        return Step(self.loss(), self.loss, self.parameters, self.initial, constants=constants)


def error(penalty: Penalty) -> float:
    """Return ‖delivered − (∇L + λ∇R)‖ / ‖λ∇R‖ on a small problem in float64, along random directions of each tensor.

    A fault in one entry shows in every direction, so a few of them find what all entries one by one would.
    """
    problem, generator = Problem(), torch.Generator().manual_seed(1)
    directions = [
        (index, torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for index, parameter in enumerate(problem.parameters)
        for _ in range(4)
    ]
    constants = penalty.constants(problem.initial)
    gradients, _ = penalty.gradients(problem.step(constants))
    delivered = torch.stack([(gradients[index] * direction).sum() for index, direction in directions])
    of_loss, of_value = problem.difference(penalty, constants, directions)
    part = penalty.strength * of_value
    assert part.norm() > 1e-3 * of_loss.norm(), "the reported value must depend on the weights"
    return ((delivered - (of_loss + part)).norm() / part.norm()).item()


@pytest.mark.parametrize("name", names(CONF))
def test_the_gradient_is_that_of_loss_plus_strength_times_the_reported_value(name):
    penalty = configured(name)
    assert isinstance(penalty, Penalty)
    assert penalty.strength == STRENGTH
    assert penalty.name == name, "it is logged under the name it is chosen by"
    assert error(penalty) < (2e-2 if name in FORWARD_DIFFERENCES else TOLERANCE)
    if name in FORWARD_DIFFERENCES:
        assert error(configured(name, FORWARD_DIFFERENCES[name])) < 1e-4


@dataclass(frozen=True)
class Fake(L2ToInit):
    """R = ‖θ − θ0‖² with a fault: `wrong` of (∇L, τ, λ) is delivered, and `value` of τ is reported."""

    name: str = "fake"
    fault: str = "none"

    def gradients(self, step):
        of_loss = step.gradients_of_loss()
        changes = [now.detach() - then for now, then in zip(step.parameters, step.initial, strict=True)]
        value, strength = squared_norm(changes), self.strength
        part = [2 * strength * change for change in changes]
        match self.fault:
            case "half":
                part = [one / 2 for one in part]
            case "sign":
                part = [-one for one in part]
            case "without strength":
                part = [2 * change for change in changes]
            case "matrices only":
                part = [one if one.ndim == 2 else 0 * one for one in part]
            case "without convolutions":
                part = [0 * one if one.ndim == 4 else one for one in part]
            case "one entry":
                part[2][0, 0] = 0
            case "without the loss":
                of_loss = tuple(torch.zeros_like(one) for one in of_loss)
            case "another value":
                value = value.sqrt()
            case "value with its strength":
                value = strength * value
            case "value of matrices":
                value = squared_norm([change for change in changes if change.ndim == 2])
            case "constant value":
                value = torch.ones_like(value)
            case "norm of the gradient":  # A squared gradient reported, but not differentiated.
                value, part = squared_norm(of_loss), [2 * strength * one for one in of_loss]
        return tuple(g + one for g, one in zip(of_loss, part, strict=True)), value


FAULTS = (
    "half", "sign", "without strength", "matrices only", "without convolutions", "one entry", "without the loss",
    "another value", "value with its strength", "value of matrices", "norm of the gradient",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_gradient_is_noticed(fault):
    assert error(Fake(STRENGTH)) < TOLERANCE
    # Far above the tolerance; all but that of one entry above the one for forward differences too.
    assert error(Fake(STRENGTH, fault=fault)) > (1e-3 if fault == "one entry" else 2e-2)


def test_a_value_that_never_changes_is_noticed():
    with pytest.raises(AssertionError, match="must depend on the weights"):
        error(Fake(STRENGTH, fault="constant value"))


NEWCOMER = """
from dataclasses import dataclass
from mergeability.finetuning.objective import squared_norm
from mergeability.finetuning.penalties.base import Penalty

@dataclass(frozen=True)
class Newcomer(Penalty):
    strength: float = 0.0
    factor: float = 2.0
    name: str = "newcomer"

    def gradients(self, step):
        weights = [parameter.detach() for parameter in step.parameters]
        plain = step.gradients_of_loss()
        return tuple(g + self.strength * self.factor * w for g, w in zip(plain, weights)), squared_norm(weights)
"""


@pytest.mark.parametrize(("factor", "right"), [(2, True), (1, False)])
def test_a_newcomer_is_found_by_its_yaml_and_tested_with_its_settings(factor, right, tmp_path, monkeypatch):
    (tmp_path / "reg").mkdir()
    (tmp_path / f"newcomer_{factor}.py").write_text(NEWCOMER)
    (tmp_path / "reg/newcomer.yaml").write_text(
        "name: newcomer\nlambda: 0\npenalty:\n"
        f"  _target_: newcomer_{factor}.Newcomer\n  strength: ${{reg.lambda}}\n  factor: {factor}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert names(tmp_path) == ["newcomer"]
    penalty = configured("newcomer", f"hydra.searchpath=[file://{tmp_path}]")
    assert isinstance(penalty, Penalty)
    assert not penalty.second_order
    assert penalty.constants([]) == {}
    assert (error(penalty) < TOLERANCE) == right


def test_every_yaml_is_tested():
    assert {"grad_magnitude", "l2_to_init", "mergeability", "singular_alignment", "subspace"} <= {
        *names(CONF)
    }
    files = {file.stem for file in (CONF / "reg").glob("*.yaml")}
    assert files == {*names(CONF), "none"}
    assert {*FORWARD_DIFFERENCES} <= files
