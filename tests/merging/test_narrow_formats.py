"""Merges that a format cannot hold are refused, and what rounding does to a merge is measured."""

import numpy as np
import pytest
import torch

from mergeability.errors import UserError
from mergeability.merging.application import apply
from mergeability.merging.rounding import Rounding

NARROW = {
    torch.float16: 65504.0,
    torch.bfloat16: float(torch.finfo(torch.bfloat16).max),
    torch.float8_e4m3fn: 448.0,
    torch.float8_e5m2: 57344.0,
}


@pytest.mark.parametrize(("dtype", "largest"), NARROW.items(), ids=str)
def test_a_merge_beyond_the_range_is_refused_and_named(dtype, largest):
    base = {"a.weight": torch.ones(3, dtype=dtype), "b.weight": torch.ones(4, dtype=dtype)}
    inside = {"b.weight": torch.tensor([0.0, 0, 0, largest / 2])}
    assert apply(base, inside, 1)["b.weight"].float().isfinite().all()
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UserError, match=rf"alpha=4 has 1 of 4 values of 'b\.weight' outside the range of {name} .*"
    ):
        apply(base, inside, 4)
    # Computed in float32, it can be written there, where that format reaches further.
    if dtype != torch.bfloat16:
        assert apply(base, inside, 4, dtype=torch.float32)["b.weight"][3] == 1 + 2 * largest


def test_the_range_of_float32_is_checked_too():
    with pytest.raises(
        UserError, match=r"1 of 2 values of 'w' outside the range of float32 .* smaller alpha\.$"
    ):
        apply({"w": torch.ones(2)}, {"w": torch.tensor([0.0, 2e38])}, 2)


FORMATS = [torch.float64, torch.float32, *NARROW]


@pytest.mark.parametrize("dtype", [None, *FORMATS], ids=str)
@pytest.mark.parametrize("own", FORMATS, ids=str)
def test_a_base_of_any_format_is_merged_and_saved_in_any_format(own, dtype):
    base = {"w": torch.ones(2, dtype=own), "text": torch.full((2,), 3, dtype=own)}
    state = apply(base, {"w": torch.tensor([1.0, -3.0])}, 0.5, dtype=dtype)
    assert {value.dtype for value in state.values()} == {own if dtype is None else dtype}
    # Each of these values has an exact representation in every format.
    assert (state["w"].tolist(), state["text"].tolist()) == ([1.5, -0.5], [3.0, 3.0])


@pytest.mark.parametrize("target", [np.float32, np.float16])
def test_the_range_ends_where_rounding_gives_infinity(target):
    largest = float(np.finfo(target).max)
    half = (largest - float(np.nextafter(np.finfo(target).max, target(0)))) / 2
    dtype = getattr(torch, target.__name__)
    for value, fits in (
        (largest + half * (1 - 2**-9), True),
        (largest + half, False),
        (largest + 1.5 * half, False),
    ):
        with np.errstate(over="ignore"):
            assert np.isfinite(np.float64(value).astype(target)) == fits
        base = {"w": torch.ones(1), "text": torch.tensor([value, -value], dtype=torch.float64)}
        if fits:
            assert apply(base, {"w": torch.ones(1)}, 1, dtype=dtype)["text"].tolist() == [largest, -largest]
        else:
            with pytest.raises(UserError, match="2 of 2 values of 'text' outside the range"):
                apply(base, {"w": torch.ones(1)}, 1, dtype=dtype)


def test_what_is_not_merged_is_converted_and_checked_and_integers_stay():
    base = {"w": torch.ones(2), "text": torch.tensor([1.0, 70000]), "ids": torch.arange(3)}
    with pytest.raises(UserError, match="1 of 2 values of 'text' outside the range of float16"):
        apply(base, {"w": torch.ones(2)}, 1, dtype=torch.float16)
    state = apply(base, {"w": torch.ones(2)}, 1, dtype=torch.bfloat16)
    assert {name: value.dtype for name, value in state.items()} == {
        "w": torch.bfloat16,
        "text": torch.bfloat16,
        "ids": torch.int64,
    }


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e-1])
def test_the_share_that_survives_is_that_of_numpys_half_precision(scale):
    generator = np.random.default_rng(0)
    base = {name: generator.normal(size=500).astype(np.float16) for name in "ab"}
    change = {name: (scale * generator.normal(size=500)).astype(np.float32) for name in "ab"}
    rounding = Rounding()
    apply(
        {name: torch.from_numpy(value) for name, value in base.items()},
        {name: torch.from_numpy(value) for name, value in change.items()},
        0.5,
        rounding=rounding,
    )
    before = np.concatenate([base[name].astype(np.float32) for name in "ab"])
    exact = before + np.float32(0.5) * np.concatenate([change[name] for name in "ab"])
    rounded = exact.astype(np.float16).astype(np.float32)
    expected = (
        1
        - np.square(rounded - exact, dtype=np.float64).sum()
        / np.square(exact - before, dtype=np.float64).sum()
    )
    assert rounding.survives == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert rounding.moved == (exact != before).sum()
    assert rounding.unmoved == ((exact != before) & (rounded == before)).sum()
    assert (rounding.survives < 0.9) == (scale < 1e-2)


@pytest.mark.parametrize("size", [1e-28, 1e-21, 1.0, 1e25])
def test_squares_beyond_float32_are_counted(size):
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * size
    rounding = Rounding()
    rounding.count(torch.zeros(1000), exact, exact.bfloat16().float())
    change, rounded = exact.double().numpy(), exact.bfloat16().double().numpy()
    assert rounding.change == pytest.approx(np.square(change).sum(), rel=1e-5, abs=0)
    assert rounding.lost == pytest.approx(np.square(rounded - change).sum(), rel=1e-5, abs=0)


def test_nothing_is_counted_where_nothing_is_rounded():
    rounding = Rounding()
    apply({"w": torch.ones(2)}, {"w": torch.ones(2)}, 0.1, rounding=rounding)
    assert (rounding.moved, rounding.survives) == (0, 1.0)
