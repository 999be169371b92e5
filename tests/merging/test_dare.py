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
