"""Merged encoders on disk: what is in the folder, what the card says, and what a full disk leaves behind."""

import contextlib
import hashlib
import json
import resource
import shutil
import weakref
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mergeability.errors import UserError
from mergeability.evaluation.merge import describe
from mergeability.merging.application import apply
from mergeability.models.clip import ClipModel
from mergeability.pipeline import saving
from mergeability.pipeline.saving import (
    check_export,
    check_space,
    encoder_bytes,
    merge_card,
    merge_folder_name,
    save_merge,
    task_accuracies,
)
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.lazy_state import LazyState

GOLDEN = Path(__file__).parent.parent / "golden"
CONFIGURATION = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}
HUGGING_FACE_FILES = {"model.safetensors", "card.json", "config.json", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def clip():
    return ClipModel("tiny", CONFIGURATION, learning_rate=1e-3, batch_size=8).build()


@pytest.fixture(scope="module")
def state(clip):
    return {f"visual.{name}": tensor for name, tensor in clip.visual.state_dict().items()}


@pytest.fixture(scope="module")
def vectors():
    models = {f"task{number}": GOLDEN / f"task{number}.safetensors" for number in (0, 1)}
    return TaskVectors.load(models, base=GOLDEN / "base.safetensors")


def files(folder):
    return {path.name for path in folder.iterdir()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(folder):
    """Say whether a folder with a card has the file that the card means, as a reader would check it."""
    card = json.loads((folder / "card.json").read_text())
    return card["sha256"] == sha256(folder / "model.safetensors")


def test_a_merge_is_saved_under_canonical_names_in_its_own_dtypes(tmp_path):
    state = {
        "visual.a": torch.arange(6.0).reshape(2, 3),
        "visual.b": torch.ones(4, dtype=torch.float16),
        "visual.c": torch.ones(4, dtype=torch.bfloat16),
        "visual.count": torch.tensor(7),
    }
    path = save_merge(tmp_path / "methods" / "a+b", state, {"alpha": 0.3})
    assert path == tmp_path / "methods" / "a+b" / "model.safetensors"
    assert files(path.parent) == {"model.safetensors", "card.json"}
    checkpoint = Checkpoint.open(path)
    assert checkpoint.dtypes == {name: tensor.dtype for name, tensor in state.items()}
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in state.items())
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    card = json.loads((path.parent / "card.json").read_text())
    assert card == {"alpha": 0.3, "names": "open_clip", "sha256": sha256(path)}


def test_an_export_loads_in_transformers_with_its_image_processor(tmp_path, clip, state):
    path = save_merge(tmp_path, state, {}, export="hf", configuration=CONFIGURATION, mean=(0.5, 0.4, 0.3))
    assert files(tmp_path) == HUGGING_FACE_FILES
    model, report = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values())
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedded = model(pixel_values=images).image_embeds
        torch.testing.assert_close(embedded, clip.encode_image(images), atol=1e-5, rtol=1e-5)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    assert tuple(processor.image_mean) == (0.5, 0.4, 0.3)
    assert tuple(processor.image_std) == (0.26862954, 0.26130258, 0.27577711)
    card = checkpoints.read_card(tmp_path)
    assert card == {"names": "hugging_face", "sha256": sha256(path)}
    found = Checkpoint.open(path).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_an_export_of_bare_checkpoints_says_where_its_configuration_comes_from(tmp_path, state):
    save_merge(tmp_path, state, {}, export="hf")
    assert files(tmp_path) == {"model.safetensors", "card.json"}
    note = checkpoints.read_card(tmp_path)["note"]
    assert "copy config.json and preprocessor_config.json of the base model into this folder" in note
    # Which then is all it takes.
    base = tmp_path / "base"
    save_merge(base, state, {}, export="hf", configuration=CONFIGURATION)
    shutil.copy(base / "config.json", tmp_path)
    _, report = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values())


def test_a_merge_takes_the_place_of_an_earlier_one_whole(tmp_path, state):
    save_merge(tmp_path, state, {"number": 1}, export="hf", configuration=CONFIGURATION)
    save_merge(tmp_path, state, {"number": 2})
    assert files(tmp_path) == {"model.safetensors", "card.json"}
    assert checkpoints.read_card(tmp_path)["number"] == 2
    assert is_whole(tmp_path)


def test_the_card_is_removed_before_the_weights_are_replaced_and_written_last(tmp_path, state, monkeypatch):
    save_merge(tmp_path, state, {"number": 1})
    seen = {}
    write_card, replace = checkpoints.write_card, Path.replace

    def replacing(temporary, path):
        if path.name == "model.safetensors":
            seen["before the weights"] = files(tmp_path) - {temporary.name}
        return replace(temporary, path)

    def writing_card(*arguments):
        seen["before the card"] = files(tmp_path)
        write_card(*arguments)

    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(checkpoints, "write_card", writing_card)
    save_merge(tmp_path, state, {"number": 2}, export="hf", configuration=CONFIGURATION)
    assert seen["before the weights"] == {"model.safetensors"}
    assert seen["before the card"] == HUGGING_FACE_FILES - {"card.json"}


def test_tensors_are_computed_one_at_a_time_and_a_failure_costs_no_earlier_merge(tmp_path, state):
    alive, most = set(), []

    def read(name):
        tensor = state[name].clone()
        alive.add(name)
        weakref.finalize(tensor, alive.discard, name)
        most.append(len(alive))
        return tensor

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    lazy = LazyState(shapes, {name: tensor.dtype for name, tensor in state.items()}, read)
    counted = []
    path = save_merge(tmp_path, lazy, lambda: {"number": len(counted.append(1) or most)})
    assert max(most) <= 2 < len(most) == len(state)
    # The card is asked for when all tensors have been written.
    assert counted == [1]
    assert checkpoints.read_card(tmp_path)["number"] == len(state)
    assert is_whole(tmp_path)
    assert all(torch.equal(Checkpoint.open(path).tensor(name), tensor) for name, tensor in state.items())

    def fails(name):
        raise UserError(f"no {name}")

    with pytest.raises(UserError, match="no visual"):
        save_merge(tmp_path, LazyState(lazy.shapes, lazy.dtypes, fails), {"number": 0})
    assert checkpoints.read_card(tmp_path)["number"] == len(state)
    assert is_whole(tmp_path)
    assert files(tmp_path) == {"model.safetensors", "card.json"}


IMPOSSIBLE = pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"export": "onnx"}, "one of hf, or null for open_clip's names, got 'onnx'"),
        ({"export": "hf", "configuration": {"embed_dim": 12}}, "with embed_dim and vision_cfg"),
        ({"export": "hf", "configuration": CONFIGURATION | {"embed_dim": 13}}, "this encoder"),
    ],
)


@IMPOSSIBLE
def test_what_cannot_be_exported_is_found_before_merging(tmp_path, state, options, message):
    base = Checkpoint.open(checkpoints.save(tmp_path / "base.safetensors", state))
    with pytest.raises(UserError, match=message):
        check_export(base, **options)
    for possible in ({}, {"configuration": {}}, {"export": "hf"}):
        check_export(base, **{"export": None, **possible})
    check_export(base, "hf", CONFIGURATION)


@IMPOSSIBLE
def test_what_cannot_be_exported_costs_no_earlier_merge(tmp_path, state, options, message):
    save_merge(tmp_path, state, {"number": 1}, export="hf", configuration=CONFIGURATION)
    with pytest.raises(UserError, match=message):
        save_merge(tmp_path, state, {"number": 2}, **options)
    assert checkpoints.read_card(tmp_path)["number"] == 1
    assert files(tmp_path) == HUGGING_FACE_FILES
    assert is_whole(tmp_path)


def test_another_architecture_is_saved_but_not_exported(tmp_path):
    state = {"layer1.weight": torch.ones(2, 2), "bn.num_batches_tracked": torch.tensor(3)}
    with pytest.raises(UserError, match=r"not understood \(2\)"):
        save_merge(tmp_path / "m", state, {}, export="hf")
    assert not (tmp_path / "m").exists()
    saved = Checkpoint.open(save_merge(tmp_path / "m", state, {}))
    assert saved.names == tuple(sorted(state))
    with pytest.raises(UserError, match=r"not understood \(2\)"):
        check_export(saved, "hf")
    check_export(saved, None)


def test_inputs_are_left_alone(tmp_path, state):
    before = {name: tensor.clone() for name, tensor in state.items()}
    card = {"alpha": 1.0}
    save_merge(tmp_path, state, card, export="hf", configuration=CONFIGURATION)
    assert card == {"alpha": 1.0}
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@contextlib.contextmanager
def file_size_limited(size):
    """Make the system refuse files above a size: what a write then meets is what it meets on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("export", [None, "hf"])
def test_a_disk_that_fills_up_while_writing_leaves_nothing_half_written(tmp_path, export):
    state = {"visual.weight": torch.zeros(10_000)}
    if export:
        state = ClipModel("tiny", CONFIGURATION, learning_rate=1e-3, batch_size=8).build().visual.state_dict()
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    folder = tmp_path / "m"
    with file_size_limited(4096), pytest.raises(UserError, match=r"Cannot write .*model\.safetensors: "):
        save_merge(folder, state, {}, export=export, configuration=CONFIGURATION)
    assert files(folder) == set()
    save_merge(folder, state, {}, export=export, configuration=CONFIGURATION)
    assert is_whole(folder)
    with file_size_limited(4096), pytest.raises(UserError, match="Cannot write"):
        save_merge(folder, state, {}, export=export, configuration=CONFIGURATION)
    # The earlier merge is removed only when the new weights are complete.
    assert is_whole(folder)
    assert Checkpoint.open(folder / "model.safetensors").names


def test_a_disk_that_is_full_after_the_weights_leaves_no_card(tmp_path, state, monkeypatch):
    def full(path, _):
        raise UserError(f"Cannot write {path}: No space left on device.")

    save_merge(tmp_path, state, {"number": 1}, export="hf", configuration=CONFIGURATION)
    monkeypatch.setattr(saving, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        save_merge(tmp_path, state, {"number": 2}, export="hf", configuration=CONFIGURATION)
    assert files(tmp_path) == {"model.safetensors"}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, state):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write into .*file/m: Not a directory.*hydra\.run\.dir"):
        save_merge(tmp_path / "file" / "m", state, {})


@dataclass(frozen=True)
class Method:
    density: float = 0.2
    then: object = None
    alpha: float = 1.0


def test_the_card_names_parents_method_options_scale_and_accuracies(vectors):
    rows = pd.DataFrame(
        {
            "tasks": "task0+task1",
            "alpha": 0.4,
            "task": ["task0", "task1"],
            "accuracy": np.float32([0.5, 0.25]),
            "base_accuracy": [0.125, 0.25],
            "finetuned_accuracy": [1.0, 0.0],
            "norm_accuracy": [0.5, np.nan],
            "kept_gain": [3 / 7, np.nan],
        }
    )
    card = merge_card(
        vectors,
        describe(Method(then=Method(density=0.5))),
        0.4,
        task_accuracies(rows),
        alpha_from="tuned on validation images",
        facts={"title": "two tasks"},
    )
    card = json.loads(json.dumps(card, allow_nan=False))
    assert card["base_sha256"] == sha256(GOLDEN / "base.safetensors")
    assert card["parents"] == {name: sha256(GOLDEN / f"{name}.safetensors") for name in ("task0", "task1")}
    assert card["merge"]["method"].endswith("Method")
    assert card["merge"]["density"] == 0.2
    assert card["merge"]["then"]["density"] == 0.5
    assert (card["alpha"], card["alpha_from"]) == (0.4, "tuned on validation images")
    assert card["accuracies"] == {
        "task0": {
            "accuracy": 0.5,
            "base_accuracy": 0.125,
            "finetuned_accuracy": 1.0,
            "norm_accuracy": 0.5,
            "kept_gain": 3 / 7,
        },
        "task1": {
            "accuracy": 0.25,
            "base_accuracy": 0.25,
            "finetuned_accuracy": 0.0,
            "norm_accuracy": None,
            "kept_gain": None,
        },
    }
    assert card["title"] == "two tasks"
    assert card["versions"]["torch"] == metadata.version("torch")
    assert {"git_commit", "platform", "finished_at"} <= card.keys()


def test_the_card_of_a_merge_that_nobody_evaluated_has_no_accuracies(vectors, tmp_path, state):
    card = merge_card(vectors, describe(Method()), 1, {}, alpha_from="the method's own")
    assert card["accuracies"] == {}
    save_merge(tmp_path, state, card)
    assert checkpoints.read_card(tmp_path)["parents"] == vectors.hashes


def test_accuracies_that_were_not_measured_are_left_out():
    rows = pd.DataFrame({"task": ["a"], "accuracy": [0.5], "method": "ties"})
    assert task_accuracies(rows) == {"a": {"accuracy": 0.5}}


def test_a_merge_of_golden_checkpoints_is_on_disk_what_numpy_makes_of_them(tmp_path, vectors):
    base, first, second = (load_file(GOLDEN / f"{name}.safetensors") for name in ("base", "task0", "task1"))
    merged = {name: vectors[name].sum(0) for name in vectors.names}
    path = save_merge(tmp_path, apply(vectors.base_checkpoint, merged, 0.3), {})
    found = load_file(path)
    assert found.keys() == base.keys()
    for name, value in base.items():
        expected = value + 0.3 * (first[name] - value + second[name] - value)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_the_size_of_an_encoder_is_foreseen(tmp_path, state):
    kept = {name: tensor.half() if "mlp" in name else tensor for name, tensor in state.items()}
    path = save_merge(tmp_path, kept, {}, export="hf", configuration=CONFIGURATION)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size <= encoder_bytes(Checkpoint.open(path)) <= size + 2**17


@pytest.mark.parametrize("place", ["", "not/yet/there"])
@pytest.mark.parametrize(("free", "fits"), [(65_600_000_000, True), (65_599_999_999, False), (0, False)])
def test_merges_are_refused_when_their_sizes_together_exceed_the_space(
    tmp_path, monkeypatch, free, fits, place
):
    asked = []

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    message = r"164 merges of 0\.4 GB each requires 65\.6 GB"
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=message):
        check_space(tmp_path / place, 164, 400_000_000)
    # The folder may be a disk of its own; one that is not there yet will be on the disk of what it is made in.
    assert asked == [tmp_path]


def test_a_full_disk_is_foreseen_with_both_numbers_and_what_to_do(tmp_path):
    check_space(tmp_path, 2, 1000)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError) as caught:
        check_space(tmp_path, 1000, 10**12)
    message = str(caught.value)
    assert "Saving 1000 merges of 1000 GB each requires 1000000 GB, but" in message
    shown = float(message.split(" has ")[1].split(" GB free")[0])
    assert shown == pytest.approx(free / 1e9, rel=0.05, abs=0.1)
    assert "pairs=…, fewer methods, or hydra.run.dir=…" in message


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        (("digits", "letters"), "digits+letters"),
        (("b", "a"), "b+a"),
        (("task_1", "task-2", "3.0"), "task_1+task-2+3.0"),
        (("a/b", "c:d"), "a%2Fb+c%3Ad"),
        (("a+b", "c"), "a%2Bb+c"),
        (("a b", "ü"), "a%20b+%C3%BC"),
        (("..", "a"), "%2E.+a"),
        (("50%", "~"), "50%25+%7E"),
        (("a" * 50, "b" * 49), "a" * 50 + "+" + "b" * 49),
    ],
)
def test_folders_are_named_after_the_tasks(tasks, name):
    assert merge_folder_name(tasks) == name


def test_long_sets_are_shortened_and_stay_apart():
    twenty = [f"a_long_task_name_{number}" for number in range(20)]
    names = {merge_folder_name(twenty[:count]) for count in range(2, 21)}
    assert len(names) == 19
    assert max(map(len, names)) == 97
    assert merge_folder_name(twenty).startswith("a_long_task_name_0+a_long_task_name_1+")
    assert merge_folder_name(twenty) == merge_folder_name(tuple(twenty))


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=2, max_size=4)


@settings(max_examples=200, deadline=None, database=None)
@given(TEXTS, TEXTS)
def test_every_set_has_a_folder_of_its_own(one, other):
    name = merge_folder_name(one)
    assert (name == merge_folder_name(other)) == (one == other)
    # Portable characters, and nothing that leads to another folder or hides this one.
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-+%~")
    assert not name.startswith(".")
    assert 0 < len(name) <= 100


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.sampled_from(["a", "+", "%", "~", ".", "/", "2B", "a+a", "%2B"]), min_size=2, max_size=4))
def test_characters_with_a_meaning_of_their_own_never_make_two_sets_one(tasks):
    joined = "+".join(tasks).split("+")
    assert (merge_folder_name(tasks) == merge_folder_name(joined)) == (tasks == joined)
