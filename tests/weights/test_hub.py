"""Models on the Hugging Face Hub: which files are downloaded, and what is said where there are none."""

import json

import huggingface_hub.errors
import pytest
import torch
from safetensors.torch import save_file

from mergeability.errors import UserError
from mergeability.store import Store
from mergeability.weights import hub
from mergeability.weights.base_folder import as_stored, files_to_copy, is_transformers
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.sharded import read_index

REVISION = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"body.weight": torch.arange(6.0).reshape(2, 3), "body.bias": torch.ones(2)}


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of a repository in the hub's cache, which has no weights yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub/models--somebody--model" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (tmp_path / "hub/models--somebody--model/refs").mkdir()
    (tmp_path / "hub/models--somebody--model/refs/main").write_text(REVISION)
    return folder


@pytest.fixture
def online(snapshot, monkeypatch):
    """Serve files of the repository, and return them by name, and a list of what is asked for."""
    files, asked = {}, []

    def download(repository, file):
        asked.append(f"{repository}/{file}")
        if file not in files:
            raise huggingface_hub.errors.EntryNotFoundError("404")
        (snapshot / file).write_bytes(files[file])
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return files, asked


def sharded(folder):
    for name, value in WEIGHTS.items():
        save_file({name: value}, folder / f"{name}.safetensors")
    places = {name: f"{name}.safetensors" for name in WEIGHTS}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_the_files_of_an_index_are_read_as_one_model(tmp_path):
    assert_same(hub.read_tensors(sharded(tmp_path)), WEIGHTS)


def test_the_files_that_an_index_names_are_downloaded_too(online, tmp_path):
    files, asked = online
    sharded(tmp_path)
    files |= {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    found = hub.find_weights("somebody/model")
    assert found.name == "model.safetensors.index.json"
    assert asked[-3:] == [
        f"somebody/model/{name}"
        for name in ("model.safetensors.index.json", "body.bias.safetensors", "body.weight.safetensors")
    ]
    assert_same(hub.read_tensors(found), WEIGHTS)
    asked.clear()
    assert hub.find_weights("somebody/model") == found
    assert not asked


def test_a_repository_that_does_not_exist_is_named(snapshot, monkeypatch):
    class Absent(huggingface_hub.errors.RepositoryNotFoundError):
        def __init__(self):
            """Do without the response of a server."""

    def download(repository, file):
        raise Absent

    monkeypatch.setattr(hub, "downloaded", download)
    with pytest.raises(UserError, match=r"neither a local file a/b nor a public model.*`hf auth login`"):
        hub.find_weights("a/b")


def test_companions_of_a_model_on_the_hub_are_downloaded_once(snapshot, online):
    files, asked = online
    files |= {"config.json": b"{}", "vocab.txt": b"a"}
    save_file(WEIGHTS, snapshot / "model.safetensors")
    expected = [snapshot / "config.json", snapshot / "vocab.txt"]
    assert hub.companions(snapshot / "model.safetensors") == expected
    assert asked[0] == "somebody/model/config.json"
    assert len(set(asked)) == len(asked) == len(hub._FETCHED)
    asked.clear()
    assert hub.companions(snapshot / "model.safetensors") == expected
    assert not asked


def test_without_a_configuration_no_other_companion_is_asked_for(snapshot, online):
    save_file(WEIGHTS, snapshot / "model.safetensors")
    assert hub.companions(snapshot / "model.safetensors") == []
    assert online[1] == ["somebody/model/config.json"]


def test_a_folder_named_like_a_commit_is_not_the_hubs(tmp_path, online):
    folder = tmp_path / REVISION
    folder.mkdir()
    (folder / "merges.txt").touch()
    assert hub.companions(folder / "model.safetensors") == [folder / "merges.txt"]
    assert not online[1]


def test_a_folder_that_cannot_be_listed_has_no_companions(tmp_path):
    assert hub.companions(tmp_path / "gone/model.safetensors") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"model_type": "bert"}', True),
        ('{"architectures": ["BertModel"]}', True),
        ("{}", False),
        ("[1]", False),
        ("{", False),
        (None, False),
    ],
)
def test_a_folder_of_transformers_is_one_whose_configuration_says_so(tmp_path, content, expected):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    base = Checkpoint.open(tmp_path / "model.safetensors")
    assert is_transformers(base) is expected
    assert list(files_to_copy(base)) == ([] if content is None else ["config.json"])


def test_weights_get_the_names_of_a_pytorch_base_and_the_tensors_that_only_it_has(tmp_path):
    attention = "visual.transformer.resblocks.0.attn."
    file = {
        f"module.{attention}{part}_proj.weight": torch.full((2, 2), float(place))
        for place, part in enumerate("qkv")
    }
    file |= {
        f"module.{attention}in_proj_bias": torch.zeros(6),
        "module.visual.class_embedding": torch.ones(2),
        "module.logit_scale": torch.tensor(3.0),
    }
    torch.save(file, tmp_path / "base.bin")
    base = hub.open_checkpoint(tmp_path / "base.bin", Store(tmp_path / "store"))
    whole = torch.arange(12.0).reshape(6, 2)
    state = {
        f"{attention}in_proj_weight": whole,
        f"{attention}in_proj_bias": torch.arange(6.0),
        "visual.class_embedding": torch.tensor([7.0, 8.0]),
    }
    found = as_stored(base, state)
    assert_same(
        {name: found[name] for name in found},
        {
            f"module.{attention}q_proj.weight": whole[:2],
            f"module.{attention}k_proj.weight": whole[2:4],
            f"module.{attention}v_proj.weight": whole[4:],
            f"module.{attention}in_proj_bias": torch.arange(6.0),
            "module.visual.class_embedding": torch.tensor([7.0, 8.0]),
            "module.logit_scale": torch.tensor(3.0),
        },
    )


def test_a_folder_with_the_settings_of_an_adapter_only_lacks_its_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json but none of .*Copy the whole folder"):
        hub.find_weights(tmp_path)


def test_a_folder_that_cannot_be_listed_is_an_error_in_a_sentence(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(UserError, match=f"^Cannot read {tmp_path}: Permission denied.$"):
        hub.find_weights(tmp_path)


def test_an_index_that_cannot_be_read_is_an_error_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^There is no index at .*gone\.index\.json\.$"):
        read_index(tmp_path / "gone.index.json")
