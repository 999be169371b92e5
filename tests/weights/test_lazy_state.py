"""Files written one tensor at a time: byte by byte those of the safetensors library."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import safetensors.torch
import torch

from mergeability.weights.base_folder import as_stored
from mergeability.weights.checkpoints import Checkpoint, file_hash
from mergeability.weights.lazy_state import LazyState, write_state
from mergeability.weights.safetensors_file import _DTYPES


def drawn(dtype, shape, seed=0):
    whole = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return whole.bool() if dtype == torch.bool else whole.to(dtype)


STATES = {
    "every dtype": {f"t.{str(dtype)[6:]}": drawn(dtype, (3, 2), 1) for dtype in _DTYPES.values()},
    "shapes": {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "b": torch.ones(2, 1, 3),
        "a": torch.ones(7),
    },
    "names": {
        "ü.weight": torch.ones(2),
        'quoted"\\': torch.zeros(1),
        "z/\u2028": torch.ones(3),
        "\x7f": torch.ones(1),
    },
    "views": {"turned": torch.arange(6.0).reshape(2, 3).T, "part": torch.arange(9.0)[2:5]},
    "one": {"weight": torch.full((1000,), 0.5)},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"ä": "ö \n"}], ids=["plain", "other"])
def test_the_bytes_are_those_of_the_library(tmp_path, state, metadata):
    contiguous = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "library.safetensors", metadata=metadata)
    sha256 = write_state(tmp_path / "ours.safetensors", LazyState.of(state), metadata)
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "library.safetensors").read_bytes()
    assert sha256 == hashlib.sha256(ours).hexdigest() == file_hash(tmp_path / "ours.safetensors")


def test_a_lazy_state_computes_on_access_only():
    read = []
    state = LazyState(
        {"a": (2,), "b": ()}, {"a": torch.float32, "b": torch.int64}, lambda name: read.append(name)
    )
    assert list(state) == ["a", "b"]
    assert len(state) == 2
    assert "a" in state.shapes
    assert read == []
    state["b"]
    assert read == ["b"]
    with pytest.raises(KeyError):
        state["c"]
    assert LazyState.of(state) is state


def test_fused_and_transposed_tensors_return_under_the_names_of_the_files(tmp_path):
    """A transformers folder keeps queries, keys and values apart; each fused tensor is computed once per layer."""
    width, draw = 8, torch.Generator().manual_seed(0)
    layer = "vision_model.encoder.layers.0"
    shapes = {
        **{f"{layer}.self_attn.{part}_proj.weight": (width, width) for part in ("q", "k", "v", "out")},
        **{f"{layer}.self_attn.{part}_proj.bias": (width,) for part in ("q", "k", "v", "out")},
        **{f"{layer}.layer_norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        **{f"{layer}.mlp.fc1.{kind}": shape for kind, shape in (("weight", (16, width)), ("bias", (16,)))},
        **{f"{layer}.mlp.fc2.{kind}": shape for kind, shape in (("weight", (width, 16)), ("bias", (width,)))},
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 2, 2),
        "vision_model.embeddings.position_embedding.weight": (5, width),
        **{f"vision_model.{norm}.{kind}": (width,) for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")},
        "visual_projection.weight": (6, width),
        "text_model.final_layer_norm.weight": (width,),
    }  # fmt: skip
    stored = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(stored, path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    base = Checkpoint.open(path)
    calls = []

    def read(name):
        calls.append(name)
        return base.tensor(name) + 1

    def in_parts(name, use):
        calls.append(f"parts of {name}")
        for row, values in enumerate((base.tensor(name) + 1).reshape(-1, width)):
            yield use(row * width, values)

    parts = {name: partial(in_parts, name) for name in base.names}
    lazy = LazyState({name: base.shapes[name] for name in base.names}, base.dtypes, read, parts=parts)
    found = as_stored(base, lazy)
    assert set(found) == set(stored)
    write_state(tmp_path / "merged.safetensors", found, {"format": "pt"})
    written = safetensors.torch.load_file(tmp_path / "merged.safetensors")
    for name, tensor in stored.items():
        # Of the text tower, which is not merged, the base's.
        assert torch.equal(written[name], tensor if "text_model" in name else tensor + 1), name
    assert len(calls) == len(set(calls)) == len(base.names)
    # What is fused or transposed in one of the two is computed whole.
    whole = {one.removeprefix("visual.") for one in calls if not one.startswith("parts")}
    assert whole == {"proj", *(f"transformer.resblocks.0.attn.in_proj_{kind}" for kind in ("weight", "bias"))}


def test_parts_are_written_from_any_thread_and_hashed_in_order(tmp_path):
    state = {"whole": torch.arange(5), "parts": drawn(torch.bfloat16, (50, 4)), "z": torch.ones(3)}
    read = []

    def parts(use):
        flat = state["parts"].flatten()
        slices = [slice(start, start + 17) for start in range(0, 200, 17)]
        with ThreadPoolExecutor(4) as pool:
            # The last part is written first.
            running = [pool.submit(use, part.start, flat[part]) for part in reversed(slices)]
        return (one.result() for one in reversed(running))

    lazy = LazyState(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        {name: tensor.dtype for name, tensor in state.items()},
        lambda name: read.append(name) or state[name],
        parts={"parts": parts},
    )
    sha256 = write_state(tmp_path / "ours.safetensors", lazy, {"format": "pt"})
    safetensors.torch.save_file(state, tmp_path / "library.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "library.safetensors").read_bytes()
    assert sha256 == hashlib.sha256(ours).hexdigest()
    assert sorted(read) == ["whole", "z"]
