import logging

import numpy as np
import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.merging import Average
from mergeability.profiles.profiles import Profiles
from mergeability.store import Store
from mergeability.task_vectors.magnitudes import magnitude_thresholds
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint

SHAPES = {"visual.proj": (6, 4), "visual.ln.weight": (4,), "visual.conv1.weight": (4, 3, 2, 2)}


def random_state(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def moved(state, seed, scale=0.1):
    return {name: value + scale * random_state(seed)[name] for name, value in state.items()}


@pytest.fixture
def write(tmp_path):
    def write_file(name, tensors):
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(tensors, path)
        return path

    return write_file


@pytest.fixture
def files(write):
    base = random_state(0)
    models = {task: write(task, moved(base, seed)) for seed, task in enumerate(["b", "a", "c"], start=1)}
    return {"base": write("base", base), "models": models}


@pytest.fixture
def task_vectors(files):
    return TaskVectors.load(files["models"], files["base"])


def read_numpy(path):
    return {name: tensor.numpy() for name, tensor in safetensors.torch.load_file(path).items()}


def test_stack_is_the_difference_to_the_base(files, task_vectors):
    base = read_numpy(files["base"])
    assert task_vectors.tasks == ("b", "a", "c")
    assert list(task_vectors) == sorted(SHAPES)
    for name in SHAPES:
        expected = np.stack([read_numpy(path)[name] - base[name] for path in files["models"].values()])
        np.testing.assert_array_equal(task_vectors[name].numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_subtracted_in_float32(write, dtype):
    base = {name: value.to(dtype) for name, value in random_state(0).items()}
    model = {name: value.to(dtype) for name, value in moved(random_state(0), 1).items()}
    vectors = TaskVectors.load({"a": write("a", model)}, write("base", base))
    for name in SHAPES:
        assert vectors[name].dtype == torch.float32
        torch.testing.assert_close(vectors[name][0], model[name].float() - base[name].float(), rtol=0, atol=0)
        assert vectors.base(name).dtype == dtype


def test_loading_reads_no_tensor(files, monkeypatch):
    monkeypatch.setattr(Checkpoint, "tensor", lambda *_: pytest.fail("a tensor was read"))
    assert len(TaskVectors.load(files["models"], files["base"])) == 3


def test_the_caller_owns_a_stack(task_vectors):
    before = task_vectors["visual.proj"].clone()
    task_vectors["visual.proj"].zero_()
    task_vectors.svd("visual.proj")[0].zero_()
    torch.testing.assert_close(task_vectors["visual.proj"], before, rtol=0, atol=0)
    assert task_vectors.svd("visual.proj")[0].any()


def test_nothing_in_memory_changes_nothing(files, task_vectors):
    streamed = TaskVectors.load(files["models"], files["base"], keep_below=0)
    for name in SHAPES:
        assert torch.equal(streamed[name], task_vectors[name])
    for left, right in zip(streamed.svd("visual.proj"), task_vectors.svd("visual.proj"), strict=True):
        assert torch.equal(left, right)


def test_select_keeps_the_order_asked_for(task_vectors):
    pair = task_vectors.select(["c", "b"])
    assert pair.tasks == ("c", "b")
    assert torch.equal(pair["visual.proj"], task_vectors["visual.proj"][[2, 0]])
    assert task_vectors.tasks == ("b", "a", "c")


@pytest.mark.parametrize("tasks", [["a", "x"], [], ["a", "a"]])
def test_select_refuses(task_vectors, tasks):
    with pytest.raises(UserError, match="each at most once"):
        task_vectors.select(tasks)


def test_svd_agrees_with_numpy(files, task_vectors):
    U, S, Vh = task_vectors.svd("visual.proj")
    base = read_numpy(files["base"])
    for row, path in enumerate(files["models"].values()):
        delta = read_numpy(path)["visual.proj"] - base["visual.proj"]
        np.testing.assert_allclose(S[row], np.linalg.svd(delta, compute_uv=False), rtol=1e-5)
        np.testing.assert_allclose((U[row] * S[row]) @ Vh[row], delta, atol=1e-6)
    assert [factor.shape for factor in task_vectors.svd("visual.proj", 2)] == [(3, 6, 2), (3, 2), (3, 2, 4)]


def test_svd_is_computed_once_per_model(files, tmp_path):
    models, base = dict(files["models"]), files["base"]
    last = models.popitem()
    first = TaskVectors.load(models, base, store=Store(tmp_path / "store"))
    first.svd("visual.proj")
    assert first.store.computed["svd"] == 2
    again = TaskVectors.load({**models, last[0]: last[1]}, base, store=Store(tmp_path / "store"))
    again.svd("visual.proj")
    assert (again.store.computed["svd"], again.store.found["svd"]) == (1, 2)


def test_svd_of_a_vector_is_refused(task_vectors):
    with pytest.raises(UserError, match=r"Expected a matrix, got 'visual.ln.weight'"):
        task_vectors.svd("visual.ln.weight")


def test_transformed_deltas_are_seen_everywhere_and_filed_nowhere(task_vectors):
    task_vectors.svd("visual.proj")
    doubled = task_vectors.transformed(lambda _task, _name, delta: 2 * delta)
    assert torch.equal(doubled["visual.proj"], 2 * task_vectors["visual.proj"])
    torch.testing.assert_close(doubled.svd("visual.proj")[1], 2 * task_vectors.svd("visual.proj")[1])
    twice = doubled.select(["a"]).transformed(lambda task, _name, delta: delta + len(task))
    assert torch.equal(twice["visual.proj"], 2 * task_vectors.select(["a"])["visual.proj"] + 1)


def test_integers_are_no_parameters_and_running_statistics_are_buffers(write):
    state = {"layer4.conv.weight": torch.ones(2, 2), "layer4.bn.num_batches_tracked": torch.tensor(3)}
    state |= {"layer4.bn.running_mean": torch.ones(2), "layer4.bn.running_var": torch.ones(2)}
    model = {name: value + value // 2 for name, value in state.items()}
    vectors = TaskVectors.load({"a": write("a", model)}, write("base", state))
    assert vectors.names == vectors.matrices == ("layer4.conv.weight",)
    assert vectors.buffers == ("layer4.bn.running_mean", "layer4.bn.running_var")


def test_other_keys_are_named(write):
    state = random_state(0)
    fewer = {name: value for name, value in state.items() if name != "visual.proj"} | {
        "visual.extra": torch.ones(1)
    }
    with pytest.raises(UserError, match=r"'a'.*lacks 1 such as 'visual.proj'.*'visual.extra'"):
        TaskVectors.load({"a": write("a", fewer)}, write("base", state))


def test_other_shapes_are_named(write):
    other = random_state(0) | {"visual.proj": torch.zeros(6, 5)}
    with pytest.raises(UserError, match=r"'visual.proj' has shape \(6, 5\) in the model of 'a' and \(6, 4\)"):
        TaskVectors.load({"a": write("a", other)}, write("base", random_state(0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(write, value):
    broken = moved(random_state(0), 1)
    broken["visual.proj"][2, 1] = value
    vectors = TaskVectors.load({"a": write("a", broken)}, write("base", random_state(0)))
    with pytest.raises(UserError, match=r"'visual.proj' of the model of 'a' contains NaN"):
        vectors["visual.proj"]


def test_damaged_files_are_refused(files, tmp_path):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(files["base"].read_bytes()[:-40])
    with pytest.raises(UserError, match=r"truncated\.safetensors"):
        TaskVectors.load({"a": truncated}, files["base"])
    with pytest.raises(UserError, match="absent"):
        TaskVectors.load({"a": tmp_path / "absent.safetensors"}, files["base"])
    with pytest.raises(UserError, match="at least one"):
        TaskVectors.load({}, files["base"])


def test_relative_norms_agree_with_numpy(files, task_vectors):
    base = read_numpy(files["base"])
    length = np.sqrt(sum((value.astype(float) ** 2).sum() for value in base.values()))
    for task, path in files["models"].items():
        model = read_numpy(path)
        delta = np.sqrt(sum(((model[name] - base[name]).astype(float) ** 2).sum() for name in SHAPES))
        assert task_vectors.relative_norms()[task] == pytest.approx(delta / length, rel=1e-6)


def test_another_base_is_refused_and_a_doubtful_one_warned_about_once(write, caplog):
    base = write("base", random_state(0))
    far = TaskVectors.load({"far": write("far", moved(random_state(0), 1, scale=3.0))}, base)
    with pytest.raises(UserError, match=r"'far' was not fine-tuned from this base"):
        far.check_base()
    doubtful = TaskVectors.load({"doubtful": write("doubtful", moved(random_state(0), 1, scale=0.9))}, base)
    with caplog.at_level(logging.WARNING):
        doubtful.check_base()
        doubtful.check_base()
    assert caplog.text.count("'doubtful'") == 1


def test_a_change_beyond_the_range_of_float32_is_refused(task_vectors):
    huge = task_vectors.transformed(lambda task, _name, delta: delta * (1e39 if task == "a" else 1))
    assert magnitude_thresholds(huge.select(["b"]), 0.5).keys() == {"b"}
    with pytest.raises(
        UserError, match=r"change of 'visual\.[a-z0-9.]+' in the model of 'a' is too large for float32"
    ):
        magnitude_thresholds(huge, 0.5)
    with pytest.raises(
        UserError, match=r"change of 'visual\.[a-z0-9.]+' in the model of 'a' is too large for float32"
    ):
        Profiles(huge).subspace_overlaps("left", "top", 2)


def test_a_change_that_is_not_finite_has_no_singular_vectors(write):
    base, broken = random_state(0), moved(random_state(0), 1)
    broken["visual.proj"][2, 1] = torch.inf
    paths = {"a": write("a", broken), "b": write("b", moved(base, 2))}
    profiles = Profiles(TaskVectors.load(paths, write("base", base), keep_below=0))
    with pytest.raises(UserError, match=r"'visual.proj' of the model of 'a' contains NaN"):
        profiles.subspace_overlaps("left", "top", 2)


def test_a_tensor_without_elements_is_merged_into_one(write):
    base = {"empty": torch.zeros(0, 4), "w": torch.ones(2)}
    models = {"a": base | {"w": torch.tensor([2.0, 3.0])}, "b": base | {"w": torch.tensor([4.0, -1.0])}}
    paths = {task: write(task, state) for task, state in models.items()}
    vectors = TaskVectors.load(paths, write("base", base), keep_below=0, refuse_above=9)
    merged = Average()(vectors)
    assert merged["empty"].shape == (0, 4)
    assert merged["w"].tolist() == [2.0, 0.0]


def test_a_buffer_of_another_type_is_named_even_with_the_same_values(write):
    base = random_state(0) | {"visual.order": torch.arange(3)}
    models = {"same": base, "other": base | {"visual.order": torch.arange(3).int()}}
    vectors = TaskVectors.load(
        {task: write(task, state) for task, state in models.items()}, write("base", base)
    )
    found = [one for one in vectors.left_out if "integer tensors" in one.what]
    assert [(one.names, one.owners) for one in found] == [(("visual.order",), ("other",))]


@pytest.mark.parametrize("patterns", [{"include": [""]}, {"exclude": ["head", ""]}])
def test_empty_patterns_are_refused(files, patterns):
    (option,) = patterns
    with pytest.raises(
        UserError, match=f"Expected {option} to be a regular expression or a list of them, got"
    ):
        TaskVectors.load(files["models"], files["base"], **patterns)


def test_task_vectors_describe_themselves(files):
    models = {"a&b": files["models"]["a"], "c": files["models"]["c"]}
    vectors = TaskVectors.load(models, files["base"])
    # 6·4 + 4 + 4·3·2·2 numbers.
    expected = "TaskVectors(a&b, c; 76 parameters in 3 tensors, base base.safetensors)"
    assert repr(vectors) == expected
    base = read_numpy(files["base"])
    shown = vectors._repr_html_()
    assert f"<caption>{expected.replace('&', '&amp;')}</caption>" in shown
    for task, path in models.items():
        state = read_numpy(path)
        moved_by, length = (
            np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in values))
            for values in ([state[name] - base[name] for name in base], base.values())
        )
        assert f"<td>{task.replace('&', '&amp;')}</td><td>{100 * moved_by / length:.3g} %</td>" in shown


def test_task_vectors_are_compared_by_identity(task_vectors):
    same = task_vectors.select(task_vectors.tasks)
    assert task_vectors != same
    assert len({task_vectors, task_vectors, same}) == 2


def test_states_in_memory_have_the_differences_of_their_files(files):
    states = {task: safetensors.torch.load_file(path) for task, path in files["models"].items()}
    vectors = TaskVectors.load(states, safetensors.torch.load_file(files["base"]))
    for name in SHAPES:
        base = read_numpy(files["base"])[name]
        expected = np.stack([state[name].numpy() - base for state in states.values()])
        np.testing.assert_array_equal(vectors[name].numpy(), expected)


def test_the_same_file_twice_is_warned_about(files, caplog):
    with caplog.at_level(logging.WARNING):
        TaskVectors.load({"a": files["models"]["a"], "copy": files["models"]["a"]}, files["base"])
    assert "'a' and 'copy' have identical files" in caplog.text


def test_the_base_among_the_models_is_warned_about(files, caplog):
    with caplog.at_level(logging.WARNING):
        TaskVectors.load({"a": files["models"]["a"], "same": files["base"]}, files["base"])
    assert caplog.messages == ["'same' and the base have identical files: it adds nothing to a merge."]


def test_a_transformation_sees_whole_tensors_in_every_layout(write):
    state = {
        "visual.attn.in_proj_weight": torch.arange(24.0).reshape(6, 4),
        "visual.conv": torch.ones(2, 1, 3, 3),
    }
    tuned = {name: value * 1.1 for name, value in state.items()}
    vectors = TaskVectors.load({"a": write("a", tuned)}, write("base", state))
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    changed = vectors.transformed(lambda _task, name, delta: delta * mask if "attn" in name else 2 * delta)
    cut = changed.with_layout(split_qkv=True, matricize="conv")
    expected = 0.1 * torch.arange(24.0).reshape(6, 4) * mask
    for row, part in enumerate("qkv"):
        name = f"visual.attn.{part}_proj_weight"
        torch.testing.assert_close(cut[name][0], expected[2 * row : 2 * row + 2], atol=1e-5, rtol=0)
        np.testing.assert_array_equal(cut.read("a", name, 1, 5), cut[name].flatten()[1:5])
    torch.testing.assert_close(cut["visual.conv"], torch.full((1, 2, 9), 0.2), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed["visual.conv"].shape, torch.Size([1, 2, 1, 3, 3]))


def test_splitting_without_a_fused_attention_is_said(task_vectors, caplog):
    assert task_vectors.with_layout(split_qkv=True) is task_vectors
    assert "There is no fused attention to split: no tensor is called in_proj_weight" in caplog.text


def test_parts_of_a_fused_tensor_may_differ_in_type(write):
    parts = {
        f"visual.transformer.resblocks.0.attn.{part}_proj_weight": torch.full((2, 4), 1.5) for part in "qkv"
    }
    names = list(parts)
    mixed = {**parts, names[0]: parts[names[0]].half(), names[1]: parts[names[1]].bfloat16()}
    bias = {"visual.transformer.resblocks.0.attn.in_proj_bias": torch.zeros(6)}
    base = write("base", {name: value * 0.5 for name, value in parts.items()} | bias)
    vectors = TaskVectors.load({"a": write("a", mixed | bias)}, base)
    fused = "visual.transformer.resblocks.0.attn.in_proj_weight"
    torch.testing.assert_close(vectors[fused], torch.full((1, 6, 4), 0.75))
    np.testing.assert_array_equal(vectors.read("a", fused), np.full(24, 0.75, np.float32))
    with pytest.raises(UserError, match=r"Some parts of .* are integers"):
        TaskVectors.load(
            {"a": write("b", {**mixed, names[2]: torch.ones(2, 4, dtype=torch.int32)} | bias)}, base
        )


def test_a_folder_keeps_half_of_the_triplets_and_finds_them_for_every_smaller_rank(files, tmp_path):
    vectors = TaskVectors.load(files["models"], files["base"], store=Store(tmp_path / "store"))
    half = vectors.svd("visual.proj", 2)
    one = vectors.svd("visual.proj", 1)
    assert (vectors.store.computed["svd"], vectors.store.found["svd"]) == (3, 3)
    assert torch.equal(one[0], half[0][:, :, :1])
    kept = [safetensors.torch.load_file(path) for path in (tmp_path / "store/svd").rglob("*.safetensors")]
    assert {tuple(factors["S"].shape) for factors in kept} == {(2,)}, "min(6, 4) / 2"
    whole = vectors.svd("visual.proj")
    assert vectors.store.computed["svd"] == 6
    torch.testing.assert_close(whole[1][:, :2], half[1])


def test_large_factors_are_not_kept_in_memory(files):
    vectors = TaskVectors.load(files["models"], files["base"], keep_below=0)
    vectors.svd("visual.proj", 2)
    assert not vectors.store.computed["svd"]


def test_parts_are_put_together_as_the_checkpoints_hold_them(write):
    state = {
        "visual.attn.in_proj_weight": torch.arange(24.0).reshape(6, 4),
        "visual.attn.in_proj_bias": torch.arange(6.0),
        "visual.conv": torch.arange(18.0).reshape(2, 1, 3, 3),
        "visual.ln": torch.ones(3),
    }
    tuned = {
        name: value + 1 + torch.arange(value.numel()).reshape(value.shape) for name, value in state.items()
    }
    vectors = TaskVectors.load({"a": write("a", tuned)}, write("base", state))
    cut = vectors.with_layout(split_qkv=True, matricize="conv")
    assert vectors.layout is None
    assert cut.layout is not None
    assert vectors.with_layout(split_qkv=True).layout != cut.layout
    whole = cut.assembled({name: cut[name][0] for name in reversed(cut.names)})
    assert whole.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(whole[name], tuned[name] - value)
    some = {name: cut[name][0] for name in cut.names if not name.endswith("k_proj_weight")}
    with pytest.raises(UserError, match=r"Parts of .* are missing"):
        cut.assembled(some)
    with pytest.raises(UserError, match="'other' is not a parameter of the models"):
        cut.assembled({"other": torch.ones(1)})


def test_tied_weights_are_found_by_their_values_in_every_model(write):
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return torch.randn(30, generator=generator)

    one, two, first, second = drawn(), drawn(), drawn(), drawn()
    base = {"a": one, "b": one.clone(), "c": one.clone(), "d": two, "e": one.reshape(5, 6).clone()}
    both = {
        "a": first,
        "b": first.clone(),
        "c": first.clone(),
        "d": two + 1,
        "e": first.reshape(5, 6).clone(),
    }
    # Untied in one model, and only in its last element.
    other = {**both, "a": second, "b": second.clone(), "c": torch.cat([second[:-1], two[:1]])}
    vectors = TaskVectors.load({"x": write("x", both), "y": write("y", other)}, write("base", base))
    assert vectors.tied == {"b": "a"}
    assert vectors.select(["x"]).tied == {"b": "a", "c": "a"}
    assert vectors.tied == {"b": "a"}, "a selection has ties of its own"
