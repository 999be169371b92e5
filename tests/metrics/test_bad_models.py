"""Models that cannot be compared are refused in one sentence; odd ones have the values the definitions imply."""

import logging

import numpy as np
import pytest
import safetensors.numpy

from mergeability.errors import UserError
from mergeability.metrics.catalogue import CATALOGUE, CATEGORIES, WEIGHT_SPACE
from mergeability.metrics.measure import measure
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors

# A clean tensor comes first: the type checks of the tests look at the first item of any mapping, task vectors too.
SHAPES = {"first.bias": (5,), "layer.weight": (24, 16), "other.weight": (14, 20), "layer.bias": (9,)}
K = 10
OVERLAPS = CATEGORIES["subspace"]


def random_state(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    return {name: (scale * generator.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def good_states():
    base = random_state(0)
    moved = {task: random_state(seed, 0.1) for seed, task in enumerate("ab", start=1)}
    return {
        "base": base,
        **{task: {name: base[name] + moved[task][name] for name in base} for task in moved},
    }


@pytest.fixture
def load(tmp_path):
    """Write the states, the base's among them, and open the task vectors of the others."""
    written = []

    def open_vectors(states, store=None):
        folder = tmp_path / f"models{len(written)}"
        written.append(folder)
        paths = save_all(states, folder)
        base = paths.pop("base")
        return TaskVectors.load(paths, base, store=store)

    return open_vectors


def save_all(states, folder):
    folder.mkdir()
    for name, state in states.items():
        safetensors.numpy.save_file(state, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in states}


# What cannot be compared: each spoils a copy of the good states.


def put(states, model, name, value, place=3):
    states[model][name].flat[place] = value


def drop_a_tensor(states):
    del states["b"]["layer.weight"]


def add_a_tensor(states):
    states["b"]["surplus.weight"] = np.ones((2, 2), np.float32)


def change_a_shape(states):
    states["b"]["layer.weight"] = states["b"]["layer.weight"].T.copy()


def come_from_another_base(states):
    states["b"] = {name: value + 5 * random_state(9)[name] for name, value in states["b"].items()}


def start_from_zeros(states):
    states["base"] = {name: np.zeros_like(value) for name, value in states["base"].items()}


def make_a_model_integer(states):
    states["b"]["layer.weight"] = np.ones((24, 16), np.int64)


def make_the_base_integer(states):
    states["base"]["layer.weight"] = np.ones((24, 16), np.int64)


def put_nan_in_a_matrix(states):
    put(states, "b", "layer.weight", np.nan)


def put_nan_in_a_vector(states):
    put(states, "b", "layer.bias", np.nan)


def put_infinity_in_a_matrix(states):
    put(states, "b", "other.weight", np.inf)


def put_infinity_in_a_vector(states):
    put(states, "b", "layer.bias", -np.inf)


def put_two_infinities_in_a_matrix(states):
    put(states, "b", "layer.weight", np.inf)
    put(states, "b", "layer.weight", -np.inf, place=100)


def put_nan_in_a_matrix_of_the_base(states):
    put(states, "base", "other.weight", np.nan)


def put_nan_in_a_vector_of_the_base(states):
    put(states, "base", "layer.bias", np.nan)


def put_infinity_in_a_matrix_of_the_base(states):
    put(states, "base", "layer.weight", np.inf)


def put_infinity_in_the_base_and_its_models(states):
    for model in states:
        put(states, model, "layer.weight", np.inf)


def exceed_float32(states):
    states["b"]["layer.weight"] = states["b"]["layer.weight"].astype(np.float64)
    put(states, "b", "layer.weight", 1e300)


def overflow_the_difference(states):
    put(states, "base", "layer.weight", -3e38)
    put(states, "a", "layer.weight", -3e38)
    put(states, "b", "layer.weight", 3e38)


def leave_only_integers(states):
    for model in states:
        states[model] = {"steps": np.arange(3)}


NOT_FINITE = "contains NaN or infinite values"
REFUSED = {
    drop_a_tensor: ["'b'", "lacks 1 such as 'layer.weight'"],
    add_a_tensor: ["'b'", "'surplus.weight'"],
    change_a_shape: ["'b'", "'layer.weight'", "(16, 24)", "(24, 16)"],
    come_from_another_base: ["'b' was not fine-tuned from this base", "times the norm of the base"],
    start_from_zeros: ["'a' was not fine-tuned from this base"],
    make_a_model_integer: ["'b'", "'layer.weight'", "floating-point"],
    make_the_base_integer: ["'a'", "'layer.weight'", "floating-point"],
    put_nan_in_a_matrix: ["'layer.weight' of the model of 'b'", NOT_FINITE],
    put_nan_in_a_vector: ["'layer.bias' of the model of 'b'", NOT_FINITE],
    put_infinity_in_a_matrix: ["'other.weight' of the model of 'b'", NOT_FINITE],
    put_infinity_in_a_vector: ["'layer.bias' of the model of 'b'", NOT_FINITE],
    put_two_infinities_in_a_matrix: ["'layer.weight' of the model of 'b'", NOT_FINITE],
    put_nan_in_a_matrix_of_the_base: ["'other.weight' of the base model", NOT_FINITE],
    put_nan_in_a_vector_of_the_base: ["'layer.bias' of the base model", NOT_FINITE],
    put_infinity_in_a_matrix_of_the_base: ["'layer.weight' of the base model", NOT_FINITE],
    put_infinity_in_the_base_and_its_models: ["'layer.weight' of the base model", NOT_FINITE],
    exceed_float32: ["'layer.weight' of the model of 'b'", NOT_FINITE],
    overflow_the_difference: ["'b'"],
    leave_only_integers: [],
}
CASES = [
    pytest.param(
        spoil,
        parts,
        id=spoil.__name__,
    )
    for spoil, parts in REFUSED.items()
]


def spoilt(spoil):
    states = good_states()
    spoil(states)
    return states


@pytest.mark.parametrize(("spoil", "parts"), CASES)
def test_what_cannot_be_compared_is_refused_in_one_sentence(load, tmp_path, spoil, parts):
    """In memory, on a store, and on a store that remembers the first refusal."""
    for store in (Store(None), Store(tmp_path / "store"), Store(tmp_path / "store")):
        with pytest.raises(UserError) as refusal:
            measure(load(spoilt(spoil), store))
        sentence = str(refusal.value)
        assert all(part in sentence for part in parts), sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize(("spoil", "parts"), CASES)
def test_the_command_refuses_them_too_and_leaves_no_result(command, tmp_path, spoil, parts):
    paths = save_all(spoilt(spoil), tmp_path / "models")
    run = tmp_path / "run"
    ended = command(
        "analyze", "suite=checkpoints", f"suite.base='{paths['base']}'",
        f"suite.models={{a: '{paths['a']}', b: '{paths['b']}'}}",
        f"paths.root={tmp_path / 'outputs'}", f"hydra.run.dir={run}", "logger=csv",
    )  # fmt: skip
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    last = ended.output.rstrip().splitlines()[-1]
    assert last.startswith("Error: "), ended.output
    assert ended.output.count("Error: ") == 1, ended.output
    assert all(part in last for part in parts), last
    left = [path for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    assert [path.name for path in left] == ["analyze.log"]


def test_the_good_states_are_good(command, load, tmp_path):
    assert measure(load(good_states())).notna().all(axis=None)
    paths = save_all(good_states(), tmp_path / "models")
    ended = command(
        "analyze", "suite=checkpoints", f"suite.base='{paths['base']}'",
        f"suite.models={{a: '{paths['a']}', b: '{paths['b']}'}}",
        f"paths.root={tmp_path / 'outputs'}", f"hydra.run.dir={tmp_path / 'run'}", "logger=csv",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert (tmp_path / "run/pairs.csv").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        put_nan_in_a_matrix,
        put_infinity_in_a_matrix,
        put_two_infinities_in_a_matrix,
    ],
)
@pytest.mark.parametrize("name", ["singular_value_overlap", "subspace_overlap"])
def test_what_is_not_finite_is_found_without_a_gram_matrix_too(load, spoil, name):
    with pytest.raises(UserError, match=f"of the model of 'b' {NOT_FINITE}"):
        measure(load(spoilt(spoil)), {name: WEIGHT_SPACE[name]})


def test_a_change_beyond_float32_is_found_without_a_gram_matrix_too(load, tmp_path):
    for name in ("sign_conflict", "subspace_overlap"):
        with pytest.raises(UserError, match=r"'layer.weight' in the model of 'b' is too large for float32"):
            measure(
                load(spoilt(overflow_the_difference), store=Store(tmp_path / name)),
                {name: CATALOGUE[name].metric},
            )


@pytest.mark.parametrize("metric", [WEIGHT_SPACE["subspace_overlap"], CATALOGUE["sign_conflict"].metric])
def test_another_base_is_found_without_a_gram_matrix_too(load, metric):
    with pytest.raises(UserError, match="'b' was not fine-tuned from this base"):
        measure(load(spoilt(come_from_another_base)), {"metric": metric})


def test_a_refusal_spoils_nothing_for_the_repaired_models(load, tmp_path):
    expected = measure(load(good_states()))
    store = Store(tmp_path / "store")
    for spoil in (put_nan_in_a_matrix, put_infinity_in_a_matrix_of_the_base, come_from_another_base):
        with pytest.raises(UserError):
            measure(load(spoilt(spoil), store))
        np.testing.assert_array_equal(measure(load(good_states(), store)), expected)


# What can be compared, odd as it is.


def overlaps_by_hand(pairs, k=K):
    """Average the six overlaps over pairs of deltas of a matrix, from NumPy's SVD."""
    found = {name: [] for name in OVERLAPS}
    for left, right in pairs:
        (Ua, Sa, Va), (Ub, Sb, Vb) = (
            np.linalg.svd(one.astype(np.float64), full_matrices=False) for one in (left, right)
        )
        size = min(k, len(Sa))
        found["singular_value_overlap"].append(Sa @ Sb / np.linalg.norm(Sa) / np.linalg.norm(Sb))
        found["subspace_overlap"].append(np.linalg.norm(Ua[:, :size].T @ Ub[:, :size]) / size)
        for end, rows in (("top", slice(size)), ("bottom", slice(-size, None))):
            cosines = np.linalg.svd(Va[rows] @ Vb[rows].T, compute_uv=False)
            found[f"right_subspace_overlap_{end}_k"].append(np.linalg.norm(cosines) / np.sqrt(size))
            found[f"interaction_matrix_overlap_{end}_k"].append(np.mean(cosines**2))
    return {name: np.mean(values) for name, values in found.items()}


def delta(states, task, name):
    return states[task][name] - states["base"][name]


def test_integer_buffers_are_ignored(load):
    states = good_states()
    expected = measure(load(states))
    for steps, state in enumerate(states.values()):
        state["bn.num_batches_tracked"] = np.array(steps)
        state["position_ids"] = np.arange(17)[None] + 1000 * steps
        state["mask"] = np.array([steps > 0, True])
    del states["b"]["mask"]
    np.testing.assert_allclose(measure(load(states)), expected, rtol=1e-9)


def test_a_tensor_frozen_in_one_model_counts_only_where_it_moved(load):
    states = good_states()
    for name in ("first.bias", "layer.weight", "layer.bias"):
        states["b"][name] = states["base"][name]
    row = measure(load(states)).iloc[0]
    expected = overlaps_by_hand([(delta(states, "a", "other.weight"), delta(states, "b", "other.weight"))])
    a, b = (
        np.concatenate([delta(states, task, name).ravel() for name in SHAPES]).astype(np.float64)
        for task in "ab"
    )
    expected["task_vector_dot_product"] = a @ b
    expected["task_vector_l2_distance"] = np.linalg.norm(a - b)
    s = np.linalg.svd(
        np.stack([delta(states, task, "other.weight").ravel() for task in "ab"]), compute_uv=False
    )
    shares = s / s.sum()
    expected["layerwise_effective_rank"] = np.exp(-np.sum(shares * np.log(shares)))
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-4), name
    assert row.notna().all()


def test_a_tensor_frozen_in_all_models_changes_nothing(load):
    states = good_states()
    expected = measure(load(states))
    for state in states.values():
        state["frozen.weight"] = np.full((12, 11), 0.5, np.float32)
        state["frozen.bias"] = np.full(5, 0.5, np.float32)
    table = measure(load(states))
    np.testing.assert_allclose(table, expected, rtol=1e-9)
    assert table.attrs["undefined"] == []


UNDIRECTED = (
    "task_vector_cosine_similarity",
    "weight_space_angle",
    *CATEGORIES["effective rank"][:5],
    *OVERLAPS,
)


@pytest.mark.parametrize("others", [(), ("a",)])
def test_models_identical_to_their_base_have_no_direction(load, others):
    states = good_states()
    for task in ("b", *others):
        states[task] = dict(states["base"])
    table = measure(load(states))
    row = table.iloc[0]
    assert set(row.index[row.isna()]) == set(UNDIRECTED)
    expected = {
        "task_vector_dot_product": 0,
        "task_vector_magnitude_ratio": 0,
        "layerwise_effective_rank": 2,
        "layerwise_effective_rank_mergeability_score": 0,
    }
    assert {name: row[name] for name in expected} == expected
    lengths = [np.linalg.norm(delta(states, "a", name).astype(np.float64)) for name in SHAPES]
    assert row["task_vector_l2_distance"] == pytest.approx(np.linalg.norm(lengths), rel=1e-6)
    for name in UNDIRECTED:
        assert f"{name} has no value for 1 of 1 pairs" in table.attrs["undefined"]


def test_the_same_model_twice_is_measured_and_said(load, caplog):
    states = good_states()
    states["b"] = states["a"]
    with caplog.at_level(logging.WARNING):
        row = measure(load(states)).iloc[0]
    assert "'a' and 'b' have identical files" in caplog.text
    assert row["interaction_matrix_overlap_top_k"] == pytest.approx(1)


# Updates of whole numbers on a grid, whose rank float32 keeps exactly.


def of_rank(seed, shape, rank):
    generator = np.random.default_rng(seed)
    left, right = (generator.integers(-3, 4, size=size) for size in ((shape[0], rank), (rank, shape[1])))
    update = (left @ right / 64).astype(np.float32)
    assert np.linalg.matrix_rank(update.astype(np.float64)) == rank
    return update


def grid_states(**updates):
    """Make models of one matrix each, or of several by name, from a base on the same grid."""
    named = {task: one if isinstance(one, dict) else {"weight": one} for task, one in updates.items()}
    generator = np.random.default_rng(99)
    base = {
        name: (generator.integers(-90, 91, size=value.shape) / 8).astype(np.float32)
        for name, value in next(iter(named.values())).items()
    }
    return {
        "base": base,
        **{task: {name: base[name] + value for name, value in one.items()} for task, one in named.items()},
    }


def determined(shape, rank, k=K):
    """Say by hand which k outer singular vectors a matrix of some rank determines.

    The first k are those of nonzero values. The last k right ones of a tall matrix are the rest of its space,
    determined if no more than k values are zero; those of a wide one lie anywhere in a larger space.
    """
    rows, columns = shape
    smaller = min(shape)
    k = min(k, smaller)
    top = rank >= k
    return {
        "left_top": top or k == rows,
        "right_top": top or k == columns,
        "right_bottom": rank == smaller or k == columns or (columns <= rows and columns - rank <= k),
    }


NEEDS = {
    "singular_value_overlap": None,
    "subspace_overlap": "left_top",
    "right_subspace_overlap_top_k": "right_top",
    "right_subspace_overlap_bottom_k": "right_bottom",
    "interaction_matrix_overlap_top_k": "right_top",
    "interaction_matrix_overlap_bottom_k": "right_bottom",
}
RANKS = [
    (shape, rank)
    for shape in [(30, 20), (20, 30), (25, 25), (100, 80), (80, 100), (12, 8), (8, 12), (9, 9)]
    for rank in [1, 3, 9, 10, 11, 15, 20, 70, 79, 80]
    if rank <= min(shape)
]


@pytest.mark.parametrize(("shape", "rank"), RANKS)
def test_updates_below_full_rank_have_a_value_where_their_subspaces_are_determined(load, shape, rank):
    update, full = of_rank(1, shape, rank), of_rank(2, shape, min(shape))
    table = measure(load(grid_states(a=update, b=full, c=of_rank(3, shape, rank))))
    known = determined(shape, rank)
    for pair, deltas in {
        ("a", "b"): (update, full),
        ("a", "c"): (update, of_rank(3, shape, rank)),
    }.items():
        row, expected = table.loc[pair], overlaps_by_hand([deltas])
        for name, needed in NEEDS.items():
            if needed is None or known[needed]:
                assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
            else:
                assert np.isnan(row[name]), name
    for side_end, is_known in known.items():
        side, end = side_end.split("_")
        sentences = [
            sentence
            for sentence in table.attrs["undefined"]
            if f"{'first' if end == 'top' else 'last'} {K} {side} singular vectors of 'a'" in sentence
        ]
        assert len(sentences) == (0 if is_known else 1), table.attrs["undefined"]
        assert all("in 1 of 1 matrices" in sentence for sentence in sentences)
    assert not any("vectors of 'b'" in sentence for sentence in table.attrs["undefined"])


def test_only_the_matrix_of_low_rank_is_left_out(load):
    low, high = of_rank(1, (20, 30), 4), of_rank(2, (30, 20), 20)
    other_low, other_high = of_rank(3, (20, 30), 20), of_rank(4, (30, 20), 20)
    table = measure(load(grid_states(a={"low": low, "high": high}, b={"low": other_low, "high": other_high})))
    both = overlaps_by_hand([(low, other_low), (high, other_high)])
    one = overlaps_by_hand([(high, other_high)])
    row = table.iloc[0]
    assert row["singular_value_overlap"] == pytest.approx(both["singular_value_overlap"], rel=1e-5)
    for name in OVERLAPS[1:]:
        assert row[name] == pytest.approx(one[name], rel=1e-4), name
    sentences = [sentence for sentence in table.attrs["undefined"] if "of 'a'" in sentence]
    assert len(sentences) == 3, "left top, right top, right bottom"
    assert all("1 of 2 matrices" in sentence for sentence in sentences)


@pytest.mark.parametrize("zeros", [1, 5, 10, 11, 19])
def test_rows_that_did_not_move(load, zeros):
    shape = (25, 25)
    update, full = of_rank(1, shape, 25), of_rank(2, shape, 25)
    update[3 : 3 + zeros] = 0
    known = determined(shape, 25 - zeros)
    row, expected = measure(load(grid_states(a=update, b=full))).iloc[0], overlaps_by_hand([(update, full)])
    assert known["right_bottom"] == (zeros <= 10)
    for name, needed in NEEDS.items():
        if needed is None or known[needed]:
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name
        else:
            assert np.isnan(row[name]), name


def test_left_vectors_of_zero_values_are_no_basis(load):
    """Asked for directly: the last ten left vectors of a square matrix, five of them of zero values."""
    update = of_rank(1, (25, 25), 20)
    vectors = load(grid_states(a=update, b=of_rank(2, (25, 25), 25)))
    overlap = Profiles(vectors).subspace_overlaps("left", "bottom", K)[0]
    last = np.linalg.svd(update.astype(np.float64))[0][:, -K:]
    other = np.linalg.svd(of_rank(2, (25, 25), 25).astype(np.float64))[0][:, -K:]
    assert np.isnan(overlap[0, 1]) or overlap[0, 1] == pytest.approx(
        np.linalg.norm(last.T @ other) ** 2, rel=1e-4
    )
    assert np.isnan(overlap[0, 0]) or overlap[0, 0] == pytest.approx(K, rel=1e-4)


def test_equal_singular_values_determine_no_subspace_of_their_own(load):
    size, factor = 16, np.float32(0.25)
    tied, full = factor * np.eye(size, dtype=np.float32), of_rank(2, (size, size), size)
    table = measure(load(grid_states(a=tied, b=full)))
    row = table.iloc[0]
    values = np.linalg.svd(full.astype(np.float64), compute_uv=False)
    assert row["singular_value_overlap"] == pytest.approx(
        values.sum() / np.sqrt(size) / np.linalg.norm(values), rel=1e-5
    )
    assert row[list(OVERLAPS[1:])].isna().all()
    assert sum("singular vectors of 'a'" in sentence for sentence in table.attrs["undefined"]) == 3


def test_equal_singular_values_are_not_called_a_lack_of_rank(load):
    tied, full = np.eye(16, dtype=np.float32) / 4, of_rank(2, (16, 16), 16)
    reasons = [
        sentence
        for sentence in measure(load(grid_states(a=tied, b=full))).attrs["undefined"]
        if "of 'a'" in sentence
    ]
    assert reasons
    assert not any("whose change is rank-deficient" in sentence for sentence in reasons)


def test_equal_singular_values_are_no_matter_inside_a_subspace_or_where_all_are_taken(load):
    """Ten equal values and ten other equal ones have two subspaces; of nine values, all nine are taken."""
    blocks = np.diag(np.repeat(np.float32([2, 0.5]), 10))
    rotated = np.roll(blocks, 5, axis=1)
    row = measure(load(grid_states(a=blocks, b=rotated))).iloc[0]
    # Columns 0–9 against 5–14, rows 0–9 against 0–9.
    assert row["subspace_overlap"] == pytest.approx(1 / np.sqrt(10), rel=1e-6)
    for end in ("top", "bottom"):
        assert row[f"interaction_matrix_overlap_{end}_k"] == pytest.approx(0.5, rel=1e-6)
        assert row[f"right_subspace_overlap_{end}_k"] == pytest.approx(np.sqrt(0.5), rel=1e-6)
    tied, full = np.eye(9, dtype=np.float32) / 4, of_rank(2, (9, 9), 9)
    row = measure(load(grid_states(a=tied, b=full))).iloc[0]
    assert row["subspace_overlap"] == pytest.approx(1 / 3, rel=1e-6)
    for name in OVERLAPS[2:]:
        assert row[name] == pytest.approx(1, rel=1e-6), name


def test_a_matrix_smaller_than_k_has_all_its_vectors_at_both_ends(load):
    update, other = of_rank(1, (4, 30), 4), of_rank(2, (4, 30), 4)
    row, expected = measure(load(grid_states(a=update, b=other))).iloc[0], overlaps_by_hand([(update, other)])
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-4), name
    assert row["subspace_overlap"] == pytest.approx(1 / np.sqrt(4), rel=1e-6)
    assert row["right_subspace_overlap_top_k"] == pytest.approx(row["right_subspace_overlap_bottom_k"])


@pytest.mark.parametrize("shape", [(1, 12), (12, 1), (1, 1)])
def test_a_single_row_or_column_has_one_direction(load, shape):
    generator = np.random.default_rng(4)
    update, other = (generator.integers(1, 9, size=shape).astype(np.float32) / 64 for _ in range(2))
    update.flat[0] *= -1
    cosine = float((update * other).sum() / np.linalg.norm(update) / np.linalg.norm(other))
    row = measure(load(grid_states(a=update, b=other))).iloc[0]
    left, right = (1, abs(cosine)) if shape[0] == 1 else (abs(cosine), 1)
    expected = {
        "singular_value_overlap": 1,
        "subspace_overlap": left,
        "right_subspace_overlap_top_k": right,
        "right_subspace_overlap_bottom_k": right,
        "interaction_matrix_overlap_top_k": right**2,
        "interaction_matrix_overlap_bottom_k": right**2,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 3, 2, 2)])
def test_a_tensor_without_elements_changes_nothing(load, shape):
    states = good_states()
    expected = measure(load(states))
    for state in states.values():
        state["empty.weight"] = np.zeros(shape, np.float32)
    np.testing.assert_allclose(measure(load(states)), expected, rtol=1e-9)


@pytest.mark.parametrize("exponent", [-66, -140, 100])
def test_tiny_and_huge_weights_have_the_values_of_ordinary_ones(load, exponent):
    """Powers of two, so that nothing but the exponents changes."""
    states = good_states()
    for state in states.values():
        for name in state:
            # So coarse that even the smallest numbers of float32 hold it.
            state[name] = (np.round(state[name] * 64) / 64).astype(np.float32)
    scale = 2.0**exponent
    expected = measure(load(states)).iloc[0]
    expected["task_vector_dot_product"] *= scale**2
    expected["task_vector_l2_distance"] *= scale
    if exponent < 0:
        # Published limits: norms below 1e-8 have the ratio 0, tensors below 1e-10 are skipped.
        expected["task_vector_magnitude_ratio"] = expected["layerwise_effective_rank_mergeability_score"] = 0
        expected["layerwise_effective_rank"] = 2
    scaled = {
        model: {name: (value.astype(np.float64) * scale).astype(np.float32) for name, value in state.items()}
        for model, state in states.items()
    }
    assert all(value.any() for value in scaled["a"].values())
    row = measure(load(scaled)).iloc[0]
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=0), name


def test_a_tiny_update_of_an_ordinary_base_has_its_subspaces(load):
    """Where the base is zero, float32 holds an update of 1e-20."""
    updates = {
        task: (1e-20 * np.random.default_rng(seed).normal(size=(24, 16))).astype(np.float32)
        for seed, task in enumerate("ab")
    }
    beside = np.ones(5, np.float32)
    states = {"base": {"weight": np.zeros((24, 16), np.float32), "bias": beside}}
    states |= {task: {"weight": update, "bias": beside} for task, update in updates.items()}
    row = measure(load(states)).iloc[0]
    a, b = (update.astype(np.float64) for update in updates.values())
    for name, value in overlaps_by_hand([(a, b)]).items():
        assert row[name] == pytest.approx(value, rel=1e-4), name
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    assert row["task_vector_cosine_similarity"] == pytest.approx(cosine, rel=1e-6)
    assert row["task_vector_l2_distance"] == pytest.approx(np.linalg.norm(a - b), rel=1e-6, abs=0)
    assert row["task_vector_magnitude_ratio"] == 0
    assert row["layerwise_effective_rank"] == 2


def test_models_without_a_matrix_have_no_overlap(load):
    states = good_states()
    expected = {
        task: np.concatenate([delta(states, task, name).ravel() for name in SHAPES]).astype(np.float64)
        for task in "ab"
    }
    flat = {model: {name: value.ravel() for name, value in state.items()} for model, state in states.items()}
    table = measure(load(flat))
    row = table.iloc[0]
    assert set(row.index[row.isna()]) == set(OVERLAPS)
    assert sorted(table.attrs["undefined"]) == sorted(
        f"{name} has no value for 1 of 1 pairs" for name in OVERLAPS
    )
    a, b = expected.values()
    assert row["task_vector_dot_product"] == pytest.approx(a @ b, rel=1e-5)
    assert row["task_vector_magnitude_ratio"] == pytest.approx(
        min(np.linalg.norm(a), np.linalg.norm(b)) / max(np.linalg.norm(a), np.linalg.norm(b)), rel=1e-6
    )
    whole = measure(load(states)).iloc[0]
    for name in (*CATEGORIES["geometry"], *CATEGORIES["effective rank"]):
        assert row[name] == pytest.approx(whole[name], rel=1e-6), name


def test_other_shapes_of_k_agree_with_numpy(load):
    """k is clipped per matrix: 1, 8 and 500 of 14 and 16 singular vectors."""
    states = good_states()
    pairs = [
        (delta(states, "a", name), delta(states, "b", name)) for name in ("layer.weight", "other.weight")
    ]
    models = Profiles(load(states))
    for k in (1, 8, 500):
        metrics = {
            name: lambda given, name=name, k=k: WEIGHT_SPACE[name].func(
                given, **{**WEIGHT_SPACE[name].keywords, "k": k}
            )
            for name in OVERLAPS[1:]
        }
        row, expected = measure(models, metrics).iloc[0], overlaps_by_hand(pairs, k)
        for name, value in row.items():
            assert value == pytest.approx(expected[name], rel=1e-4), (name, k)
