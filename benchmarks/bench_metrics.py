"""The pair metrics with pytest-benchmark: comparable from version to version, never pass or fail on seconds.

    python -m pytest -o addopts= benchmarks/bench_metrics.py --sizes vit_b16 --rounds 1 --benchmark-save=before
    python -m pytest -o addopts= benchmarks/bench_metrics.py --sizes vit_b16 --rounds 1 --benchmark-compare

`-o addopts=` leaves the checks of shapes and types out of what is timed. What passes or fails here are values.
"""

import math
from itertools import count
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from benchmarks import agreement, models, plan, report
from benchmarks.opponents import OPPONENTS
from mergeability.metrics.catalogue import CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors


@pytest.fixture
def fresh(suite, tmp_path):
    """Make profiles with an empty store, anew each time."""
    numbers = count()

    def make():
        store = Store(tmp_path / str(next(numbers)))
        return Profiles(TaskVectors.load(suite.models, base=suite.base, store=store))

    return make


def every_time_fresh(fresh):
    return lambda: ((fresh(),), {})


@pytest.mark.parametrize("opponent", OPPONENTS)
def test_golden_values(opponent):
    assert agreement.golden_disagreements(opponent) == []


@pytest.mark.parametrize("opponent", OPPONENTS)
def test_ours_and_pairwise_code_agree(opponent, tiny_suite):
    assert agreement.our_disagreements(tiny_suite, opponent) == []


def test_a_difference_is_seen():
    right = {"a": 2.0, "b": 0.05, "c": math.nan}
    assert agreement.disagreements({**right, "b": 0.050009}, right, "x") == []
    assert len(agreement.disagreements({**right, "b": 0.050011}, right, "x")) == 1
    assert len(agreement.disagreements({**right, "a": 2.00021}, right, "x")) == 1
    assert len(agreement.disagreements({**right, "c": 1.0}, right, "x")) == 1
    assert len(agreement.disagreements({"a": 2.0, "b": 0.05}, right, "x")) == 1


@pytest.mark.parametrize(("size", "name"), [("vit_b16", "ViT-B-16"), ("vit_l14", "ViT-L-14")])
def test_shapes_are_those_of_open_clip(size, name):
    import open_clip

    visual: Any = open_clip.create_model(name, device="meta").visual
    theirs = {f"visual.{name}": tuple(tensor.shape) for name, tensor in visual.state_dict().items()}
    assert models.shapes(models.SIZES[size]) == theirs


def test_deltas_are_like_those_of_fine_tuning(tiny_suite):
    base = safetensors.torch.load_file(tiny_suite.base)
    whole = math.sqrt(sum(float(tensor.square().sum()) for tensor in base.values()))
    for path in tiny_suite.models.values():
        tuned = safetensors.torch.load_file(path)
        deltas = {name: (tuned[name] - base[name]).double() for name in base}
        length = math.sqrt(sum(float(delta.square().sum()) for delta in deltas.values()))
        assert 0.009 < length / whole < 0.021
        values = np.linalg.svd(deltas["visual.transformer.resblocks.1.mlp.c_fc.weight"].numpy())[1]
        assert values[0] > 1.3 * values[4] > 1.6 * values[-1] > 0


def test_models_depend_on_seed_and_number_alone():
    size = models.SIZES["tiny"]
    base = models.base_state(size, seed=3)
    one = models.fine_tuned_state(base, 1, seed=3)
    assert all((models.fine_tuned_state(base, 1, seed=3)[name] == one[name]).all() for name in one)
    assert all((models.fine_tuned_state(base, 2, seed=3)[name] != one[name]).any() for name in one)


def test_models_are_removed_also_after_an_error(tmp_path):
    def fail():
        with models.written(models.SIZES["tiny"], 2, folder=tmp_path) as suite:
            assert len(list(tmp_path.rglob("*.safetensors"))) == 1 + len(suite.models) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_fit_of_a_line_with_one_point_off_it():
    fit = report.linear_fit([0, 1, 2, 3], [1, 3, 5, 11])
    # By hand: b = Σ(n−1.5)(s−5)/Σ(n−1.5)² = 16/5, a = 5 − 1.5·3.2, residuals 0.8, −0.4, −1.6, 1.2.
    assert fit["b"] == pytest.approx(3.2)
    assert fit["a"] == pytest.approx(0.2)
    assert fit["largest_residual"] == pytest.approx(1.6)
    assert fit["r_squared"] == pytest.approx(1 - 4.8 / 56)


def test_a_failed_measurement_is_named_without_folders():
    job = {"measure": "opponent", "name": "careful", "base": "/no/such/place/x", "a": "y", "b": "z"}
    failed = plan.in_fresh_process(job)["failed"]
    assert "/no/such" not in failed
    assert "No such file" in failed


def test_all_pairs_fresh_store(benchmark, fresh, rounds):
    benchmark.pedantic(measure, setup=every_time_fresh(fresh), rounds=rounds)


def test_all_pairs_from_the_store(benchmark, suite, tmp_path, rounds):
    def run():
        return measure(TaskVectors.load(suite.models, base=suite.base, store=Store(tmp_path)))

    run()
    benchmark.pedantic(run, rounds=rounds)


def test_opening_and_hashing(benchmark, fresh, rounds):
    benchmark.pedantic(lambda: fresh().task_vectors.hashes, rounds=rounds)


def test_gram_matrices(benchmark, fresh, rounds):
    benchmark.pedantic(
        lambda profiles: profiles.layer_grams("task_vector"), setup=every_time_fresh(fresh), rounds=rounds
    )


def test_decompositions_of_one_model(benchmark, fresh, rounds):
    def decompose(profiles):
        for name in CATEGORIES["subspace"]:
            WEIGHT_SPACE[name](profiles)

    def alone():
        vectors = fresh().task_vectors
        return (Profiles(vectors.select(vectors.tasks[:1])),), {}

    benchmark.pedantic(decompose, setup=alone, rounds=rounds)


@pytest.mark.parametrize("opponent", OPPONENTS)
def test_one_pair_pairwise(benchmark, suite, opponent, rounds):
    a, b = list(suite.models.values())[:2]
    benchmark.pedantic(OPPONENTS[opponent], args=(suite.base, a, b), rounds=rounds)
