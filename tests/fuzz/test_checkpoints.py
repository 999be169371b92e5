"""Hostile and clumsy checkpoints: each is read into tensors, or refused in one sentence; nothing else ever happens.

500 inputs in the slow tier and a sample of 30 otherwise, drawn from a seed that the test's name shows.
"""

import io
import json
import pickle
import random
import struct
import warnings
import zipfile

import pytest
import safetensors.torch
import torch

from mergeability.errors import UserError
from mergeability.files import read_object
from mergeability.finetuning.state import state_fault
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import hub

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.ones(3),
    "steps": torch.tensor(7),
}
SAMPLE, ALL = 30, 500


def pickled(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def plain_safetensors(tensors=TENSORS):
    return safetensors.torch.save(tensors)


def noise(rng):
    return rng.choice([".bin", ".pt", ".ckpt", ".safetensors"]), rng.randbytes(rng.randrange(64))


def noisy_pickle(rng):
    start = rng.choice(
        [b"\x80", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]
    )
    return rng.choice([".bin", ".pt", ".pth"]), start + rng.randbytes(rng.randrange(48))


def opcodes(rng):
    """Pickles of valid operations in a random order."""
    some = [b"(", b")", b"]", b"}", b"N", b"K\x01", b"X\x01\x00\x00\x00a", b"q\x00", b"h\x00", b"t", b"\x85", b"\x86", b"u",
            b"s", b"a", b"e", b"b", b"R", b"0", b"\x81", b"J\xff\xff\xff\x7f", b"G" + struct.pack(">d", 1.5), b"Q",
            b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cos\nsystem\n", b"\x8a\x01\x05"]  # fmt: skip
    return ".bin", b"\x80\x02" + b"".join(rng.choices(some, k=rng.randrange(1, 20))) + b"."


def flipped(rng):
    ending, data = rng.choice(
        [(".safetensors", plain_safetensors()), (".bin", pickled(TENSORS)),
         (".bin", pickled(TENSORS, _use_new_zipfile_serialization=False))]
    )  # fmt: skip
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return ending, bytes(data)


def cut(rng):
    ending, data = rng.choice([(".safetensors", plain_safetensors()), (".pt", pickled(TENSORS))])
    return ending, data[: rng.randrange(len(data))]


def odd_tensors(rng):
    values = [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.empty(3, 4, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, 4, dtype=torch.complex64),
        lambda: torch.ones(0, 4),
        lambda: torch.full((3, 4), float("nan")),
        lambda: torch.ones(3, 4, dtype=torch.float64),
        lambda: torch.ones(2).expand(3, 2),
        lambda: torch.nn.Parameter(torch.ones(3, 4)),
        lambda: torch.ones(3, 4, dtype=torch.int32),
        lambda: "text",
        lambda: None,
        lambda: [1, 2],
    ]
    value = rng.choice(values)()
    tensors = rng.choice(
        [value, {"a.weight": value}, TENSORS | {"a.weight": value}, {"state_dict": {"a.weight": value}}, [value], {1: value},
         {"model": value, "state_dict": TENSORS}, {"": value}, {"a": {"b": value}}]
    )  # fmt: skip
    return ".pt", pickled(tensors)


def archives(rng):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in rng.choices(
            ["archive/data.pkl", "data.pkl", "archive/data/0", "constants.pkl", "../x", "archive/version"],
            k=3,
        ):
            archive.writestr(name, rng.choice([b"", b"3\n", pickle.dumps({}), rng.randbytes(20)]))
    data = bytearray(buffer.getvalue())
    # Of the directory at the end, in which offsets and sizes are.
    for _ in range(rng.randrange(4)):
        data[-rng.randrange(1, min(120, len(data)))] = rng.randrange(256)
    return ".bin", bytes(data)


def headers(rng):
    """Safetensors with a header that says something else than its data."""
    entry = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    entry |= rng.choice(
        [{"dtype": "F4"}, {"dtype": 3}, {"shape": [3, -4]}, {"shape": "x"}, {"shape": [2**62, 2**62]}, {"shape": []},
         {"data_offsets": [48, 0]}, {"data_offsets": [0, 2**63]}, {"data_offsets": [0]}, {"more": 1}, {"dtype": "BOOL"}]
    )  # fmt: skip
    value = rng.choice(
        [{"a.weight": entry}, [entry], {"a.weight": 3}, {}, {"__metadata__": {"a": 1}, "a.weight": entry}]
    )
    text = rng.choice([json.dumps(value).encode(), json.dumps(value).encode("utf-16"), b"[" * 3000, b"\xff"])
    length = rng.choice([len(text), len(text) + 1, 0, 2**40, 2**63])
    return ".safetensors", struct.pack("<Q", length) + text + bytes(48)


def folders(rng):
    """An index, or the settings of an adapter, of all kinds."""
    name = rng.choice(["model.safetensors.index.json", "pytorch_model.bin.index.json", "adapter_config.json"])
    value = rng.choice(
        [[], {}, None, 3, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a.weight": "/etc/passwd"}},
         {"weight_map": {"a.weight": "part.safetensors"}}, {"weight_map": {"b": "part.safetensors"}},
         {"weight_map": dict.fromkeys(TENSORS, "part.safetensors")}, {"weight_map": {"a": "\0"}}, {"peft_type": 3},
         {"peft_type": "LORA", "r": 2, "lora_alpha": 2}, {"peft_type": "LORA", "r": 0}, {"rank_pattern": {"(": 1}, "r": 2},
         {"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}, {"init_lora_weights": ["x"], "r": 2, "lora_alpha": 2}]
    )  # fmt: skip
    text = rng.choice([json.dumps(value).encode()] * 6 + [b"\xff\xfe", b"{", b"[" * 5000, b""])
    a, b = rng.choice(
        [((2, 4), (3, 2)), ((2, 5), (3, 2)), ((2,), (3,)), ((), ()), ((0, 4), (3, 0)), ((2, 4, 1), (3, 2, 1))]
    )
    adapter = {
        "base_model.model.a.lora_A.weight": torch.ones(a),
        "base_model.model.a.lora_B.weight": torch.ones(b),
    }
    files = {
        name: text,
        "part.safetensors": plain_safetensors(),
        "adapter_model.safetensors": plain_safetensors(adapter) if "adapter" in name else None,
    }
    return files


MAKERS = [noise, noisy_pickle, opcodes, flipped, cut, odd_tensors, archives, headers, folders]
CASES = [pytest.param(number, marks=[] if number < SAMPLE else [pytest.mark.slow]) for number in range(ALL)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    path.write_bytes(plain_safetensors())
    return path


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.filterwarnings("error")
def test_a_checkpoint_is_read_or_refused_in_a_sentence(seed, tmp_path, base):
    rng = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = MAKERS[seed % len(MAKERS)](rng)
    if isinstance(made, dict):
        path = tmp_path / "folder"
        path.mkdir()
        for name, data in made.items():
            if data is not None:
                (path / name).write_bytes(data)
    else:
        path = tmp_path / f"m{made[0]}"
        path.write_bytes(made[1])
    store = Store(tmp_path / "store")
    try:
        opened = hub.open_checkpoint(path, store, base)
        vectors = TaskVectors.load({"a": opened}, base, store=store)
        for name in vectors.names:
            assert vectors.delta("a", name).isfinite().all()
    except UserError as error:
        sentence = str(error)
        assert 20 < len(sentence) < 1500, sentence
        assert "\n" not in sentence
    # The same bytes where a state of a training or a card is expected.
    if path.is_file():
        assert state_fault(path, torch.nn.Linear(2, 2))
        try:
            card = read_object(path)
        except UserError:
            card = None
        assert card is None or isinstance(card, dict)


@pytest.mark.parametrize("text", [b"[]", b"3", b'"x"', b"\xff\xfe{", b"[" * 5000, b"{", b"nul"])
def test_a_card_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "card.json").write_bytes(text)
    with pytest.raises(UserError, match=r"card\.json.*Delete the file"):
        read_object(tmp_path / "card.json")
