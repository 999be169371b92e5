import numpy as np
import pytest
import torch

from mergeability.errors import UserError
from mergeability.merging import Average, Dare, TaskArithmetic, Ties


@pytest.fixture
def large(make_task_vectors, random_tensors):
    shapes = {"w": (200, 100), "v": (200, 100)}
    deltas = {task: random_tensors(seed, 0.1, shapes) for seed, task in enumerate("abc", start=1)}
    return make_task_vectors(random_tensors(0, 1.0, shapes), deltas)


def kept(dare, vectors, task, name):
    row = vectors.tasks.index(task)
    return dare.drop(task, name, vectors[name][row]) != 0


def test_entries_are_dropped_at_rate_p_and_the_rest_rescaled(large):
    dare = Dare(p=0.7)
    delta = large["w"][0]
    thinned = dare.drop("a", "w", delta)
    mask = thinned != 0
    # Three standard deviations of a binomial share of 20000 entries.
    assert abs(mask.float().mean().item() - 0.3) < 3 * (0.3 * 0.7 / 20000) ** 0.5
    torch.testing.assert_close(thinned[mask], delta[mask] / 0.3)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_over_many_seeds_nothing_is_lost_and_nothing_gained(p):
    seeds = 400
    delta = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    thinned = torch.stack([Dare(p=p, seed=seed).drop("a", "w", delta) for seed in range(seeds)]).double()
    share = (thinned != 0).double().mean().item()
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / thinned.numel()) ** 0.5
    # Each entry's mean is off by standard errors of |δ|·√(p/(1 − p)/seeds): as many of one size as chance gives.
    errors = delta.double().abs() * (p / (1 - p) / seeds) ** 0.5
    scores = ((thinned.mean(0) - delta.double()) / errors).numpy()
    assert abs(scores.mean()) < 4 / np.sqrt(scores.size)
    assert abs((scores**2).mean() - 1) < 4 * np.sqrt(2 / scores.size)
    assert np.abs(scores).max() < 6


def test_models_are_thinned_to_the_bit_whatever_else_is_merged_and_in_whatever_order(large):
    thinned = large.transformed(Dare().drop)
    for chosen in (["a"], ["c", "a"], ["b", "c", "a"]):
        some = large.select(chosen).transformed(Dare().drop)
        for task in chosen:
            for name in large:
                own, all_three = some[name][chosen.index(task)], thinned[name][large.tasks.index(task)]
                assert torch.equal(own, all_three)
    merged, turned = Dare()(large), Dare()(large.select(["c", "a", "b"]))
    assert all(torch.equal(merged[name], turned[name]) for name in large)


def test_a_mask_depends_on_seed_task_and_tensor_alone(large):
    mask = kept(Dare(), large, "b", "w")
    assert torch.equal(mask, kept(Dare(), large.select(["b"]), "b", "w"))
    others = [
        kept(Dare(seed=1), large, "b", "w"),
        kept(Dare(), large, "a", "w"),
        kept(Dare(), large, "b", "v"),
    ]
    for other in others:
        # Independent masks of share 0.1 agree on 0.82 of the entries.
        assert abs((mask == other).float().mean().item() - 0.82) < 0.02


def test_the_mask_is_the_same_on_every_machine():
    assert Dare(p=0.5).drop("task", "tensor", torch.ones(12)).tolist() == FIXED


# Once observed and kept, so that a changed generator does not change published merges in silence.
FIXED = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "inner", [Average(), TaskArithmetic(), Ties()], ids=lambda inner: type(inner).__name__
)
def test_what_is_left_is_merged_by_the_inner_method(large, inner):
    merged = Dare(then=inner)(large)
    thinned = large.transformed(Dare().drop)
    assert Dare(then=inner).alpha == inner.alpha
    for name, value in inner(thinned).items():
        assert torch.equal(merged[name], value)
    by_hand = torch.stack([Dare().drop(task, "w", large["w"][row]) for row, task in enumerate(large.tasks)])
    if not isinstance(inner, Ties):
        expected = by_hand.mean(0) if isinstance(inner, Average) else by_hand.sum(0)
        torch.testing.assert_close(merged["w"], expected)


def test_nothing_dropped_is_the_inner_method(large):
    for name, value in Dare(p=0)(large).items():
        assert torch.equal(value, Average()(large)[name])


@pytest.mark.parametrize("p", [1, -0.1])
def test_wrong_probabilities_are_refused(p):
    with pytest.raises(UserError, match="Expected p"):
        Dare(p=p)
