import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from mergeability.errors import UserError
from mergeability.merging import Average, Slerp


def pair_of(make_task_vectors, base, a, b):
    """Make task vectors of two models of one tensor each."""
    base, a, b = (torch.tensor(np.asarray(one), dtype=torch.float32) for one in (base, a, b))
    return make_task_vectors({"w": base}, {"a": {"w": a - base}, "b": {"w": b - base}}, refuse_above=10)


@pytest.mark.parametrize("t", [0, 0.25, 0.5, 1])
def test_unit_vectors_follow_the_great_circle(make_task_vectors, t):
    generator = np.random.default_rng(0)
    a, b, base = (one / np.linalg.norm(one) for one in generator.normal(size=(3, 24)))
    vectors = pair_of(make_task_vectors, *(one.reshape(4, 6) for one in (base, a, b)))
    found = base.reshape(4, 6) + Slerp(t=t)(vectors)["w"].double().numpy()
    expected = geometric_slerp(a, b, t).reshape(4, 6)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_vectors_at_right_angles_by_hand(make_task_vectors):
    # Halfway between (4, 0) and (0, 2): sin 45° / sin 90° times their sum, whatever their lengths.
    found = Slerp()(pair_of(make_task_vectors, [1.0, 1.0], [4.0, 0.0], [0.0, 2.0]))["w"]
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [4 * half - 1, 2 * half - 1], atol=1e-6)
    # A third of the way it is turned by 30°.
    found = Slerp(t=1 / 3)(pair_of(make_task_vectors, [1.0, 1.0], [4.0, 0.0], [0.0, 2.0]))["w"]
    np.testing.assert_allclose(found, [4 * np.sin(np.pi / 3) - 1, 2 * 0.5 - 1], atol=1e-6)


def test_every_tensor_is_turned_by_its_own_angle(make_task_vectors):
    base = {"first": torch.tensor([1.0, 1.0]), "second": torch.tensor([2.0, 2.0])}
    a = {"first": torch.tensor([0.0, -1.0]), "second": torch.tensor([0.0, 0.0])}
    b = {"first": torch.tensor([-1.0, 0.0]), "second": torch.tensor([1.0, 1.0])}
    found = Slerp()(make_task_vectors(base, {"a": a, "b": b}))
    np.testing.assert_allclose(found["first"], [np.sqrt(0.5) - 1] * 2, atol=1e-6)
    # The second tensor's two are parallel: a straight line from (2, 2) to (3, 3).
    np.testing.assert_allclose(found["second"], [0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("t", [0.5, 0.3])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]),  # parallel
        ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]),  # opposite: of all arcs none is the one
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),  # one without a direction
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0 + 2e-6]),  # an angle that float32 does not see
    ],
)
def test_where_there_is_no_arc_it_is_the_straight_line(make_task_vectors, a, b, t):
    vectors = pair_of(make_task_vectors, [0.5, 0.5, 0.5], a, b)
    found = Slerp(t=t)(vectors)["w"].double().numpy()
    first, second = vectors["w"].double().numpy()
    np.testing.assert_allclose(found, (1 - t) * first + t * second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("angle", [1e-3, 1e-5, 2e-6, 1e-7])
def test_small_angles_lose_no_digits(make_task_vectors, angle):
    # Along the arc the length stays what it is; the formula's own difference would cancel most digits.
    a, b = np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)])
    found = Slerp()(pair_of(make_task_vectors, [1.0, 0.0], a, b))["w"].double().numpy()
    np.testing.assert_allclose(found[1], np.sin(angle / 2), rtol=1e-5)


def test_the_ends_are_the_two_models_in_the_order_of_their_names(three_models):
    pair = three_models.select(["b", "a"])
    for t, row in ((0, 1), (1, 0)):
        found = Slerp(t=t)(pair)
        for name, stack in pair.items():
            torch.testing.assert_close(found[name], stack[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.025])
def test_for_small_updates_it_is_averaging_to_within_a_hundredth(make_task_vectors, random_tensors, share):
    shapes = {"w": (60, 50)}
    base = random_tensors(0, 1.0, shapes)
    deltas = {task: random_tensors(seed, share, shapes) for seed, task in enumerate("ab", start=1)}
    pair = make_task_vectors(base, deltas)
    found, average = Slerp()(pair)["w"], Average()(pair)["w"]
    away = float((found - average).norm() / average.norm())
    assert away < 0.01
    # ≈ (Ω²/8)·‖θ‖ / ‖mean τ‖ with Ω² = 2r² and ‖mean τ‖ = r‖θ‖/√2 for updates at right angles: √2/4·r.
    assert away == pytest.approx(share * np.sqrt(2) / 4, rel=0.1)


def test_any_other_number_of_models_is_refused(three_models):
    assert Slerp.models == 2
    with pytest.raises(UserError, match="exactly 2 models, got 3: select two"):
        Slerp()(three_models)


def test_half_precision_is_turned_at_its_own_values(make_task_vectors):
    base = {"w": torch.tensor([1.0, 1.0])}
    deltas = {"a": {"w": torch.tensor([3.0, -1.0])}, "b": {"w": torch.tensor([-1.0, 1.0])}}
    found = Slerp()(make_task_vectors(base, deltas, torch.float16, refuse_above=10))["w"]
    np.testing.assert_allclose(found, [4 * np.sqrt(0.5) - 1, 2 * np.sqrt(0.5) - 1], atol=1e-6)


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan"), True])
def test_a_place_beyond_the_ends_is_refused(t):
    with pytest.raises(UserError, match=r"t to be in \[0, 1\]"):
        Slerp(t=t)
