"""What every merge method keeps to, found in `conf/merge`: a new one is tested the day its file exists."""

from dataclasses import FrozenInstanceError
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from mergeability import merging
from mergeability.errors import UserError
from mergeability.merging import apply
from mergeability.merging.merger import check_alpha

FOLDER = Path(__file__).parents[2] / "conf" / "merge"
SETS = ("paper", "none")
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in SETS)
# Those that give a model back when they merge copies of it, and the scale at which they do.
COPIES = {"average": lambda count: 1, "ta": lambda count: 1 / count}


SCALED = (merging.Average, merging.TaskArithmetic, merging.Ties, merging.TSVM, merging.IsoC)


def built(options):
    arguments = {
        key: built(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if not key.startswith("_")
    }
    module, _, name = options["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**arguments)


def method(name):
    return built(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_the_folder_is_complete():
    assert len(MEMBERS) == 6
    assert yaml.safe_load((FOLDER / "paper.yaml").read_text())["defaults"] == [
        "average",
        "ta",
        "ties",
        "dare",
        "tsv",
        "iso_c",
    ]
    for name in MEMBERS:
        assert (FOLDER / f"{name}.yaml").read_text().startswith(f"# @package merge.{name}\n")


def test_every_class_can_be_imported_from_the_group():
    for name in ("Average", "Dare", "IsoC", "TSVM", "TaskArithmetic", "Ties"):
        assert getattr(merging, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        merging.nothing  # noqa: B018


@pytest.mark.parametrize("name", MEMBERS)
def test_keys_shapes_and_dtypes(three_models, name):
    merged = method(name)(three_models)
    assert tuple(merged) == three_models.names
    for key, value in merged.items():
        assert tuple(value.shape) == three_models.shapes[key]
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    assert any(value.any() for value in merged.values())


@pytest.mark.parametrize("name", MEMBERS)
def test_methods_are_frozen_and_have_a_scale(name):
    with pytest.raises(FrozenInstanceError):
        method(name).alpha = 2
    assert isinstance(method(name).alpha, float)


@pytest.mark.parametrize("name", MEMBERS)
def test_inputs_and_global_random_state_are_untouched(three_models, name):
    stacks = {key: three_models[key] for key in three_models}
    random_state = torch.get_rng_state()
    first = method(name)(three_models)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(three_models[key], stack) for key, stack in stacks.items())
    for value in first.values():
        value.fill_(9)
    assert all(torch.equal(three_models[key], stack) for key, stack in stacks.items())


@pytest.mark.parametrize("name", MEMBERS)
def test_the_order_of_the_tasks_is_irrelevant(three_models, name):
    merged, turned = method(name)(three_models), method(name)(three_models.select(["c", "b", "a"]))
    # To the last bit: where a direction is missing, rounding alone would choose another one.
    assert all(torch.equal(turned[key], merged[key]) for key in merged)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("count", [2, 5])
def test_copies_of_a_model_give_it_back(make_task_vectors, random_tensors, name, count):
    delta = random_tensors(1, 0.1)
    vectors = make_task_vectors(random_tensors(0), {f"copy{number}": delta for number in range(count)})
    merged = method(name)(vectors)
    for key, value in merged.items():
        torch.testing.assert_close(COPIES[name](count) * value, vectors[key][0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MEMBERS)
def test_models_equal_to_the_base_give_the_base(make_task_vectors, random_tensors, name):
    zero = random_tensors(1, 0.0)
    vectors = make_task_vectors(random_tensors(0), {"a": zero, "b": zero})
    assert all(torch.equal(value, torch.zeros_like(value)) for value in method(name)(vectors).values())


@pytest.mark.parametrize("name", MEMBERS)
def test_one_model_equal_to_the_base_does_no_harm(make_task_vectors, random_tensors, name):
    vectors = make_task_vectors(
        random_tensors(0), {"a": random_tensors(1, 0.1), "zero": random_tensors(2, 0.0)}
    )
    assert all(torch.isfinite(value).all() for value in method(name)(vectors).values())


@pytest.mark.parametrize("name", MEMBERS)
def test_low_rank_deltas_are_merged(make_task_vectors, random_tensors, name):
    def rank_one(seed):
        delta = random_tensors(seed, 0.1)
        return {key: value[:, :1] @ value[:1] if value.ndim == 2 else value for key, value in delta.items()}

    vectors = make_task_vectors(random_tensors(0), {"a": rank_one(1), "b": rank_one(2)})
    merged = method(name)(vectors)
    largest = max(vectors[key].abs().max() for key in vectors)
    assert all(torch.isfinite(value).all() and value.abs().max() < 20 * largest for value in merged.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MEMBERS)
def test_half_precision_is_merged_in_float32_and_written_back(make_task_vectors, random_tensors, name, dtype):
    deltas = {task: random_tensors(seed, 0.1) for seed, task in enumerate("ab", start=1)}
    vectors = make_task_vectors(random_tensors(0), deltas, dtype)
    merged = method(name)(vectors)
    assert {value.dtype for value in merged.values()} == {torch.float32}
    base = {key: vectors.base(key) for key in vectors}
    result = apply(base, merged, 0.5)
    for key, value in result.items():
        assert value.dtype == dtype
        assert torch.equal(value, (base[key].float() + 0.5 * merged[key]).to(dtype))


@pytest.mark.parametrize("name", MEMBERS)
def test_fewer_than_two_models_or_another_base_are_refused(make_task_vectors, random_tensors, name):
    near, far = random_tensors(1, 0.1), random_tensors(2, 5.0)
    vectors = make_task_vectors(random_tensors(0), {"near": near, "far": far})
    with pytest.raises(UserError, match="at least two models to merge, got 1"):
        method(name)(vectors.select(["near"]))
    with pytest.raises(UserError, match="'far' was not fine-tuned from this base"):
        method(name)(vectors)


@pytest.mark.parametrize(
    "kind", [merging.Average, merging.TaskArithmetic, merging.Ties, merging.TSVM, merging.IsoC]
)
@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_none_is_refused(kind, alpha):
    with pytest.raises(UserError, match="alpha to be a finite number"):
        kind(alpha=alpha)


@pytest.mark.parametrize("alpha", ["best", "0.3", True, None])
def test_a_scale_that_is_no_number_is_refused(alpha):
    with pytest.raises(UserError, match="alpha to be a finite number"):
        check_alpha(alpha)
