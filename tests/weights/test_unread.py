"""What is no checkpoint is named for what it is, and what lies beside the weights is named and left out."""

import gzip
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mergeability
from mergeability.errors import UserError
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import adapter_settings, hub
from mergeability.weights.safetensors_file import TensorFile
from mergeability.weights.torch_file import load_state_dict

WEIGHTS = {"body.weight": torch.eye(3), "body.bias": torch.ones(3)}


def changed(by):
    return {name: value + by for name, value in WEIGHTS.items()}


@pytest.fixture
def folder(tmp_path):
    save_file(WEIGHTS, tmp_path / "base.safetensors")
    save_file(changed(0.1), tmp_path / "a.safetensors")
    return tmp_path


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"0")


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "model")


def numbers(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def several(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


NOT_WEIGHTS = {
    "a Git LFS pointer": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0"
    ),
    "a GGUF file": lambda path: path.write_bytes(b"GGUF" + bytes(100)),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "a NumPy array": numbers,
    "an archive of NumPy arrays": several,
    "a compressed archive": lambda path: path.write_bytes(gzip.compress(b"weights")),
    "an archive. Unpack it": tarred,
    "a zip archive": zipped,
    "a web page": lambda path: path.write_text("\n <!DOCTYPE html><title>404</title>"),
    "JSON text": lambda path: path.write_text('\ufeff{"error": "not found"}'),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("what", NOT_WEIGHTS)
def test_another_kind_of_file_is_named(what, ending, tmp_path):
    path = tmp_path / f"model.{ending}"
    NOT_WEIGHTS[what](path)
    with pytest.raises(UserError, match=f"it is {what}.*\\.$") as caught:
        TensorFile(path) if ending == "safetensors" else load_state_dict(path)
    # One sentence on the file, and one on what to do.
    assert str(caught.value).count(str(path)) == 1


def test_weights_with_the_ending_of_the_other_kind_are_told_apart(tmp_path):
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    save_file(WEIGHTS, tmp_path / "model.pt")
    with pytest.raises(
        UserError, match=r"it is a PyTorch file\. If PyTorch wrote it, give it the ending \.pt"
    ):
        TensorFile(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"it is a safetensors file\. Give it the ending \.safetensors"):
        load_state_dict(tmp_path / "model.pt")


def refusal(path):
    """Return the sentence with which a file is refused; "." if it is read after all."""
    try:
        TensorFile(path) if path.suffix == ".safetensors" else load_state_dict(path)
    except UserError as error:
        return str(error)
    return "."


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_zip_archive_with_a_damaged_directory_is_refused_in_a_sentence(ending, tmp_path):
    """Python's reader has exceptions of several kinds for it."""
    path = tmp_path / f"model.{ending}"
    torch.save(WEIGHTS, path)
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02")
    for place in range(directory, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert refusal(path).endswith(".")


@pytest.mark.parametrize("length", [-1, -30, 9])
def test_a_cut_safetensors_file_is_called_truncated(length, folder):
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(whole[:length])
    with pytest.raises(UserError, match=r"truncated or damaged.*Copy it again"):
        TensorFile(folder / "a.safetensors")


def test_a_cut_file_whose_header_has_the_first_byte_of_a_pickle_is_truncated_too(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'.ljust(0x80)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(11))
    with pytest.raises(UserError, match="truncated or damaged"):
        TensorFile(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("https://huggingface.co/owner/name", r"Give the id owner/name\."),
        ("https://huggingface.co/owner/name/resolve/main/model.safetensors", r"Give the id owner/name\."),
        ("https:/hf.co/owner/name", r"Give the id owner/name\."),
        ("hf://owner/name", "Download the model"),
        ("s3://bucket/model.safetensors", "Download the model"),
        ("file:///models/model.safetensors", "Download the model"),
    ],
)
def test_an_address_is_no_path(address, cure):
    with pytest.raises(UserError, match=f"an id on the Hugging Face hub.*{cure}"):
        hub.find_weights(address)


@pytest.mark.parametrize(
    ("file", "what"),
    [("zero_to_fp32.py", "DeepSpeed.*zero_to_fp32"), (".metadata", "distributed checkpoint.*dcp_to_torch")],
)
def test_a_checkpoint_in_parts_says_how_to_join_them(file, what, tmp_path):
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=what):
        hub.find_weights(tmp_path)


def test_a_folder_without_weights_names_those_with_other_names_or_in_folders(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    save_file(WEIGHTS, tmp_path / "checkpoint-500/model.safetensors")
    with pytest.raises(UserError, match="It holds checkpoint-500/"):
        hub.find_weights(tmp_path)
    save_file(WEIGHTS, tmp_path / "consolidated.safetensors")
    with pytest.raises(UserError, match=r"It holds consolidated\.safetensors"):
        hub.find_weights(tmp_path)


def left_out(model, folder, **options):
    vectors = TaskVectors.load({"a": model}, folder / "base.safetensors", store=Store(), **options)
    assert set(vectors.names) == set(WEIGHTS)
    return [str(one) for one in vectors.left_out]


@pytest.mark.parametrize("towers", ["visual", "both"])
def test_other_weights_in_a_pytorch_file_are_named(towers, folder):
    saved = {
        "model": changed(0.1),
        "ema": changed(0.2),
        "teacher": {"inner": [changed(0.3)]},
        "queue": torch.ones(4),
        "epoch": 3,
        "best": torch.tensor(0.5),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "lr_schedulers": [{"values": torch.ones(3)}],
    }
    torch.save(saved, folder / "a.pt")
    assert left_out(folder / "a.pt", folder, towers=towers) == [
        "Left out: entries with other weights in the file, of a: ema, queue, teacher."
    ]


def test_a_plain_state_dict_has_no_other_entries(folder):
    torch.save(changed(0.1), folder / "a.pt")
    assert left_out(folder / "a.pt", folder) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            lambda: torch.eye(3).to_sparse(),
            r"1 of them are sparse: body\.weight.*call \.to_dense\(\) on them",
        ),
        (lambda: torch.eye(3) * 1j, r"complex: body\.weight.*torch\.view_as_real"),
        (lambda: torch.empty(3, device="meta"), r"on the meta device, without values: body\.weight"),
    ],
)
def test_tensors_without_plain_values_are_named_with_what_makes_them_plain(tensor, message, tmp_path):
    torch.save({"body.weight": tensor(), "body.bias": torch.ones(3)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=f"Expected plain tensors in .*{message}"):
        load_state_dict(tmp_path / "a.pt")


def test_other_weights_in_a_folder_are_named_in_the_card_too(folder):
    model = folder / "model"
    model.mkdir()
    save_file(changed(0.1), model / "model.safetensors")
    for name in ("pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors"):
        (model / name).touch()
    for name in (
        "config.json",
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "._model.safetensors",
    ):
        (model / name).touch()
    expected = "Left out: other weights files in the folder, of a: model.fp16.safetensors, pytorch_model.bin, tf_model.h5."
    assert left_out(model, folder) == [expected]
    assert left_out(model / "model.safetensors", folder) == []
    merged = mergeability.merge(
        folder / "base.safetensors", {"a": model, "b": folder / "a.safetensors"}, method="average"
    )
    merged.save(folder / "merged")
    assert json.loads((folder / "merged/card.json").read_text())["left_out"] == [expected]


def test_shards_belong_to_their_index(folder):
    model = folder / "model"
    model.mkdir()
    for number, (name, value) in enumerate(changed(0.1).items()):
        save_file({name: value}, model / f"model-{number}.safetensors")
    places = {name: f"model-{number}.safetensors" for number, name in enumerate(WEIGHTS)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert left_out(model, folder) == []


def lora(folder, **settings):
    place = folder / "adapter"
    place.mkdir()
    names = ("base_model.model.body.lora_A.weight", "base_model.model.body.lora_B.weight")
    save_file(
        dict(zip(names, (torch.ones(1, 3), torch.ones(3, 1)), strict=True)),
        place / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **settings}
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


def test_settings_of_an_adapter_that_are_not_known_are_named(folder):
    found = left_out(lora(folder, use_something=True, other=None, lora_dropout=0.1, bias="none"), folder)
    assert found == ["Left out: unknown settings of the adapter, of a: use_something."]


@pytest.mark.slow
def test_every_setting_of_peft_is_known_or_refused():
    peft = pytest.importorskip("peft")
    known = {*adapter_settings._KNOWN, *adapter_settings._UNSUPPORTED}
    assert set(peft.LoraConfig().to_dict()) <= known


@pytest.mark.parametrize(
    "names",
    [
        ("lora_unet_mid.lora_down.weight", "lora_unet_mid.lora_up.weight"),
        ("model.q_proj.base_layer.weight", "model.q_proj.lora_A.default.weight"),
        ("layer.hada_w1_a", "layer.hada_w1_b"),
    ],
)
def test_the_factors_of_other_adapters_are_no_model(names, folder):
    factors = {name: torch.ones(2, 2) for name in names}
    save_file(factors, folder / "other.safetensors")
    torch.save(WEIGHTS | factors, folder / "other.pt")
    for path in (folder / "other.safetensors", folder / "other.pt"):
        with pytest.raises(UserError, match="tensors of the model of 'a' are factors of an adapter"):
            left_out(path, folder)
    with pytest.raises(UserError, match="tensors of the base are factors"):
        TaskVectors.load({"a": folder / "a.safetensors"}, folder / "other.safetensors", store=Store())


def test_a_model_whose_base_has_such_tensors_too_is_compared(folder):
    factors = {"body.lora_A.speech.weight": torch.ones(2, 2)}
    save_file(WEIGHTS | factors, folder / "base.safetensors")
    save_file(changed(0.1) | factors, folder / "a.safetensors")
    vectors = TaskVectors.load({"a": folder / "a.safetensors"}, folder / "base.safetensors", store=Store())
    assert set(vectors.names) == {*WEIGHTS, *factors}
