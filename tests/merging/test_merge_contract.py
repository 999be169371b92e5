"""What every merge method keeps to, found in `conf/merge`: a new one is tested the day its file exists."""

import hashlib
import logging
from dataclasses import FrozenInstanceError
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mergeability import merging
from mergeability.errors import UserError
from mergeability.members import data_free, declared
from mergeability.merging import apply, fixed_alpha
from mergeability.merging.method import MergeMethod, check_alpha
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.checkpoints import Checkpoint

FOLDER = Path(__file__).parents[2] / "conf" / "merge"
MEMBERS = sorted(path.stem for path in FOLDER.glob("*.yaml") if "\n_target_:" in path.read_text())
# The methods of version 0.1.0 and their classes: none of them may get lost.
PUBLISHED = {
    "average": "Average",
    "breadcrumbs": "Breadcrumbs",
    "consensus_ta": "ConsensusTA",
    "dare": "Dare",
    "fisher": "Fisher",
    "iso_c": "IsoC",
    "iso_cts": "IsoCTS",
    "regmean": "RegMean",
    "slerp": "Slerp",
    "ta": "TaskArithmetic",
    "ties": "Ties",
    "tsv": "TSVM",
}
NEED_DATA = {"fisher", "regmean"}
# Those that give a model back when they merge copies of it, how many, and the scale at which they do.
COPIES = [
    ("average", 2, 1),
    ("average", 5, 1),
    ("ta", 2, 1 / 2),
    ("ta", 5, 1 / 5),
    ("slerp", 2, 1),
    ("fisher", 2, 1),
    ("fisher", 5, 1),
    ("regmean", 2, 1),
    ("regmean", 5, 1),
]
# Those that treat every number by itself, however the numbers are cut into tensors.
ENTRY_BY_ENTRY = {"average", "ta", "ties", "dare", "consensus_ta", "fisher"}

every_method = pytest.mark.parametrize("name", MEMBERS)


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def built(options):
    arguments = {
        key: built(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if not key.startswith("_")
    }
    module, _, name = options["_target_"].rpartition(".")
    return getattr(import_module(module), name)(**arguments)


def method(name):
    return built(read(name))


def merge(name, profiles, tasks=None):
    """Merge by a method as configured: so many models as it takes, with their data where it needs any."""
    chosen = method(name)
    tasks = list(tasks or profiles.tasks)[: chosen.models]
    profiles = profiles.select(tasks)
    return chosen(profiles if chosen.needs_data else profiles.task_vectors)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_no_published_method_is_lost():
    assert set(PUBLISHED) <= set(MEMBERS)
    for name, kind in PUBLISHED.items():
        assert read(name)["_target_"] == f"mergeability.merging.{kind}"
        assert getattr(merging, kind).__name__ == kind
    for name in (*PUBLISHED.values(), "apply", "fixed_alpha"):
        assert getattr(merging, name).__name__ == name
        assert name in merging.__all__
    with pytest.raises(AttributeError, match="nothing"):
        merging.nothing  # noqa: B018
    assert read("paper")["defaults"] == ["average", "ta", "ties", "dare", "tsv", "iso_c"]


@every_method
def test_a_method_declares_its_traits_in_its_own_class(name):
    assert (FOLDER / f"{name}.yaml").read_text().startswith(f"# @package merge.{name}\n")
    chosen = method(name)
    assert isinstance(chosen, MergeMethod)
    assert isinstance(chosen.needs_data, bool)
    assert chosen.models is None or chosen.models >= 2
    # What command lines read from the source is what the class has.
    found = declared(read(name)["_target_"])
    assert (found["needs_data"], found["models"]) == (chosen.needs_data, chosen.models)
    assert (name in data_free()) == (not chosen.needs_data)
    if name in PUBLISHED:
        assert chosen.needs_data == (name in NEED_DATA)
        assert chosen.models == (2 if name == "slerp" else None)


@every_method
def test_the_configuration_says_the_defaults_of_the_class(name):
    chosen = method(name)
    # DARE's inner method is spelt out there, so that it can be changed.
    if name != "dare":
        assert chosen == type(chosen)()
    with pytest.raises(FrozenInstanceError):
        chosen.alpha = 2


@every_method
def test_the_scale_is_a_number_or_a_word_that_stands_for_one(trio, name):
    chosen = method(name)
    assert isinstance(chosen.alpha, float) or chosen.alpha == "published"
    assert fixed_alpha(chosen, trio.task_vectors) == (1.0 if chosen.alpha == "published" else chosen.alpha)
    if name != "dare":
        assert fixed_alpha(type(chosen)(alpha="tuned"), trio.task_vectors) == fixed_alpha(
            chosen, trio.task_vectors
        )
        for alpha in (float("nan"), float("inf"), -float("inf"), "best"):
            with pytest.raises(UserError, match="alpha to be a finite number"):
                type(chosen)(alpha=alpha)


@pytest.mark.parametrize("alpha", ["best", "0.3", "published", True, None])
def test_a_scale_that_is_no_number_is_refused(alpha):
    with pytest.raises(UserError, match="alpha to be a finite number"):
        check_alpha(alpha)


@every_method
def test_keys_shapes_and_dtypes(trio, name):
    merged = merge(name, trio)
    assert tuple(merged) == trio.task_vectors.names
    assert "visual.steps" not in merged
    for key, value in merged.items():
        assert tuple(value.shape) == trio.task_vectors.shapes[key]
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
    # A method that did nothing at all would pass most of what follows.
    assert all(merged[key].any() for key in trio.task_vectors.matrices)


@every_method
def test_inputs_files_and_global_random_state_are_untouched(trio, name):
    def look():
        vectors, views = trio.task_vectors, trio.views
        files = [vectors.base_checkpoint, *(vectors.model(task) for task in vectors.tasks)]
        return (
            [hashlib.sha256(one.path.read_bytes()).hexdigest() for one in files],
            [vectors[key].numpy().tobytes() for key in vectors],
            [tensor.detach().numpy().tobytes() for tensor in views.encoder.state_dict().values()],
            [
                tensor.numpy().tobytes()
                for one in views.calibration.values()
                for tensor in (one.tensors["images"], one.labels)
            ],
            [head.numpy().tobytes() for head in views.heads.values()],
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
        )

    before = look()
    merged = merge(name, trio)
    assert look() == before
    for value in merged.values():
        value.fill_(9)
    assert look() == before


@every_method
def test_the_order_of_the_tasks_is_irrelevant(towers, trio, name):
    two = method(name).models == 2
    merged = merge(name, trio, "ac" if two else "abc")
    # To the last bit: where a direction is missing, rounding alone would choose another one.
    assert_same(merge(name, trio, "ca" if two else "cab"), merged)
    turned = towers.make({task: towers.delta(seed) for task, seed in (("c", 3), ("a", 2), ("b", 1))})
    assert_same(merge(name, turned, "ca" if two else None), merged)


@every_method
def test_a_pair_is_merged_the_same_whatever_else_is_loaded(towers, trio, name):
    alone = towers.make({"c": towers.delta(3), "b": towers.delta(1)})
    merged = merge(name, alone)
    assert_same(merge(name, trio, "bc"), merged)
    others = merge(name, trio, "ab")
    assert any(not torch.equal(merged[key], others[key]) for key in merged)


@pytest.mark.parametrize(("name", "count", "scale"), COPIES)
def test_copies_of_a_model_give_it_back(towers, name, count, scale):
    delta = towers.delta(1)
    profiles = towers.make({f"copy{number}": delta for number in range(count)})
    for key, value in merge(name, profiles).items():
        torch.testing.assert_close(scale * value, profiles.task_vectors[key][0], rtol=1e-5, atol=1e-7)


@every_method
def test_models_equal_to_the_base_give_the_base(towers, name):
    zero = towers.delta(1, 0.0)
    profiles = towers.make({"a": zero, "b": zero})
    merged = merge(name, profiles)
    assert not any(value.any() for value in merged.values())
    base = profiles.task_vectors.base_checkpoint
    moved = apply(base, merged, fixed_alpha(method(name), profiles.task_vectors))
    assert_same(moved, base.state_dict())


@every_method
def test_one_model_equal_to_the_base_does_no_harm(towers, name):
    delta = towers.delta(1)
    profiles = towers.make({"a": delta, "zero": towers.delta(2, 0.0)})
    merged = merge(name, profiles)
    assert all(torch.isfinite(value).all() for value in merged.values())
    assert any(value.any() for value in merged.values()) or name == "consensus_ta"
    for key, value in merged.items():
        assert value.norm() < 3 * profiles.task_vectors[key][0].norm() + 1e-6


@every_method
def test_low_rank_deltas_are_merged(towers, name):
    def rank_one(seed):
        return {
            key: 5 * value[:, :1] @ value[:1] if value.ndim == 2 else value
            for key, value in towers.delta(seed).items()
        }

    profiles = towers.make({"a": rank_one(1), "b": rank_one(2)})
    vectors, merged = profiles.task_vectors, merge(name, profiles)
    largest = max(vectors[key].norm() for key in vectors)
    assert all(torch.isfinite(value).all() and value.norm() < 5 * largest for value in merged.values())
    assert all(merged[key].any() for key in vectors.matrices) or name in ("consensus_ta", "dare", "ties")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_method
def test_half_precision_is_merged_in_float32_and_written_back(towers, name, dtype):
    deltas = {task: towers.delta(seed) for seed, task in enumerate("ab", start=1)}
    profiles = towers.make(deltas, dtype)
    merged = merge(name, profiles)
    assert {value.dtype for value in merged.values()} == {torch.float32}
    # As float32 the very numbers of these files give the same.
    vectors = profiles.task_vectors
    wide = {name: vectors.base_checkpoint.tensor(name).float() for name in towers.floating}
    changes = {
        task: {key: vectors.model(task).tensor(key).float() - wide[key] for key in wide} for task in "ab"
    }
    assert_same(merge(name, towers.make(changes, base={**towers.base, **wide})), merged)
    base = vectors.base_checkpoint.state_dict()
    for key, value in apply(base, merged, 0.5).items():
        assert value.dtype == base[key].dtype
        if key in merged:
            assert value.dtype == dtype
            assert torch.equal(value, (base[key].float() + 0.5 * merged[key]).to(dtype))
        else:
            assert torch.equal(value, base[key])


@every_method
def test_tied_weights_stay_tied(tied_towers, name):
    deltas = {task: tied_towers.delta(seed) for seed, task in enumerate("ab", start=1)}
    profiles = tied_towers.make(deltas)
    # Nobody says so: a file has no two names for one tensor.
    assert profiles.task_vectors.tied == {"visual.proj": "visual.mirror"}
    merged = merge(name, profiles)
    assert torch.equal(merged["visual.mirror"], merged["visual.proj"])
    assert merged["visual.mirror"].any()
    # Each has its own memory: whoever changes one of the names does not change the other unawares.
    assert merged["visual.mirror"].data_ptr() != merged["visual.proj"].data_ptr()
    # `base` has both names for one piece of memory, and so has what becomes of it.
    moved = apply(tied_towers.base, merged, 1)
    assert moved["visual.mirror"].data_ptr() == moved["visual.proj"].data_ptr()
    assert torch.equal(moved["visual.proj"], tied_towers.base["visual.proj"] + merged["visual.proj"])


@every_method
def test_another_arrangement_comes_back_under_the_checkpoints_names(towers, trio, name):
    deltas = {task: towers.delta(seed) for seed, task in enumerate(("b", "a", "c"), start=1)}
    arranged = towers.make(deltas, arrangement={"split_qkv": True, "matricize": "conv"})
    vectors = arranged.task_vectors
    assert "visual.transformer.resblocks.0.attn.q_proj_weight" in vectors.matrices
    assert "visual.conv1.weight" in vectors.matrices
    merged = merge(name, arranged)
    assert tuple(merged) == vectors.names
    whole = vectors.assembled(merged)
    expected = merge(name, trio)
    assert whole.keys() == expected.keys()
    assert all(whole[key].shape == expected[key].shape for key in expected)
    kept = [key for key in expected if "in_proj" not in key and "conv1" not in key]
    # TIES keeps a share of all entries, Fisher weighs each by itself: neither minds where a tensor ends.
    for key in expected if name in ENTRY_BY_ENTRY else kept:
        assert torch.equal(whole[key], expected[key]), key
    moved = apply(vectors.base_checkpoint, whole, 1)
    assert {key: value.shape for key, value in moved.items()} == {
        key: value.shape for key, value in vectors.base_checkpoint.state_dict().items()
    }


@every_method
def test_fewer_than_two_models_are_refused(trio, name):
    with pytest.raises(UserError, match="at least two models to merge, got 1"):
        merge(name, trio, "a")


@every_method
def test_models_of_another_base_are_refused_or_warned_of(towers, caplog, name):
    deltas = {"near": towers.delta(1), "far": towers.delta(2, 0.5)}
    with pytest.raises(UserError, match="'far' was not fine-tuned from this base"):
        merge(name, towers.make(deltas))
    with caplog.at_level(logging.WARNING):
        merge(name, towers.make(deltas, refuse_above=100))
    assert "task vector of 'far'" in caplog.text
    assert "'near'" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        merge(name, towers.make(deltas, refuse_above=100, warn_above=100))
    assert not caplog.text
    with pytest.raises(UserError, match="'near' was not fine-tuned from this base"):
        merge(name, towers.make(deltas, refuse_above=0.01))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_method
def test_an_input_that_is_not_finite_is_named(towers, name, value):
    spoilt = towers.delta(2)
    spoilt["visual.proj"][1, 2] = value
    with pytest.raises(UserError, match=r"'visual.proj' of the model of 'b' contains NaN or infinite"):
        merge(name, towers.make({"a": towers.delta(1), "b": spoilt}))


def test_models_of_another_architecture_are_refused(towers):
    profiles = towers.make({"a": towers.delta(1), "b": towers.delta(2)})
    state = profiles.task_vectors.model("a").state_dict()

    def load(other):
        path = towers.folder / "other.safetensors"
        from mergeability.weights.checkpoints import save

        save(path, other)
        models = {"a": profiles.task_vectors.model("a"), "other": path}
        return TaskVectors.load(models, profiles.task_vectors.base_checkpoint)

    assert len(load(state).tasks) == 2
    with pytest.raises(UserError, match=r"model of 'other'.*'visual.ln_post.weight'"):
        load({key: value for key, value in state.items() if key != "visual.ln_post.weight"})
    # Published towers come without their projection, which stays the base's.
    bare = load({key: value for key, value in state.items() if key != "visual.proj"})
    assert not bare["visual.proj"][1].any()
    with pytest.raises(
        UserError, match=r"'visual.proj' has shape \(16, 7\) in the model of 'other' and \(16, 8\)"
    ):
        load({**state, "visual.proj": state["visual.proj"][:, :7]})


def test_the_same_checkpoint_given_twice_is_warned_of(towers, caplog):
    profiles = towers.make({"a": towers.delta(1)})
    one = profiles.task_vectors.model("a").path
    with caplog.at_level(logging.WARNING):
        vectors = TaskVectors.load({"a": one, "b": one}, profiles.task_vectors.base_checkpoint.path)
    assert "'a' and 'b' have identical files" in caplog.text
    assert_same(merging.Average()(vectors), {key: vectors[key][0] for key in vectors})
    assert isinstance(vectors.model("a"), Checkpoint)
