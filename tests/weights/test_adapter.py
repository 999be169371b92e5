"""LoRA adapters: merged on reading into what PEFT's own `merge_and_unload` makes, and into what NumPy computes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergeability.errors import UserError
from mergeability.metrics.measure import measure
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import hub
from mergeability.weights.adapter import AdaptedFile
from mergeability.weights.safetensors_file import TensorFile

# Module → outputs, inputs; the convolution's inputs are channels × kernel.
SHAPES = {"body.wide": (12, 6), "body.tall": (5, 9), "body.square": (7, 7)}
RANK = 3


@pytest.fixture
def base(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(*shape, generator=generator) for name, shape in SHAPES.items()}
    tensors |= {
        "body.wide.bias": torch.randn(12, generator=generator),
        "head.weight": torch.randn(4, 5, generator=generator),
    }
    save_file(tensors, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def factors(modules=SHAPES, rank=RANK, seed=1):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in modules:
        outputs, inputs = SHAPES[name]
        found[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        found[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
    return found


def adapter(tmp_path, tensors, name="adapter", **settings):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["wide"], **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def opened(folder, base):
    return AdaptedFile(folder, TensorFile(base))


def product(tensors, name):
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double().numpy() for x in "AB")
    return b @ a


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, {"body.wide": 2, "body.tall": 2, "body.square": 2}),
        ({"use_rslora": True}, dict.fromkeys(SHAPES, 6 / 3**0.5)),
        (
            {"alpha_pattern": {"tall": 9, "body.square": 12}},
            {"body.wide": 2, "body.tall": 3, "body.square": 4},
        ),
        ({"alpha_pattern": {"all": 9}}, dict.fromkeys(SHAPES, 2)),
    ],
)
def test_weights_are_those_of_the_base_and_the_scaled_product(tmp_path, base, settings, scales):
    tensors = factors()
    file, plain = opened(adapter(tmp_path, tensors, **settings), base), TensorFile(base)
    for name, scale in scales.items():
        expected = plain.tensor(f"{name}.weight").double().numpy() + scale * product(tensors, name)
        np.testing.assert_allclose(file.tensor(f"{name}.weight").numpy(), expected, rtol=1e-5, atol=1e-5)
        # Any range of it, as metrics read it.
        for start, stop in ((0, 1), (3, 20), (7, None), (5, 5), (0, expected.size)):
            found = file.read_float32(f"{name}.weight", start, stop)
            np.testing.assert_allclose(found, expected.ravel()[start:stop], rtol=1e-5, atol=1e-5)
    assert torch.equal(file.tensor("body.wide.bias"), plain.tensor("body.wide.bias"))
    assert file.entries.keys() == plain.entries.keys()


def test_the_rank_of_a_pattern_is_the_one_that_scales(tmp_path, base):
    tensors = factors(["body.wide"], rank=2) | factors(["body.tall"])
    settings = {"rank_pattern": {r"bod.\.wide": 2}}
    file = opened(adapter(tmp_path, tensors, **settings), base)
    change = file.tensor("body.wide.weight") - TensorFile(base).tensor("body.wide.weight")
    np.testing.assert_allclose(change.numpy(), 6 / 2 * product(tensors, "body.wide"), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="the settings specify rank 3"):
        opened(adapter(tmp_path, tensors), base)


def test_with_dora_every_output_has_the_length_that_the_adapter_says(tmp_path, base):
    tensors = factors(["body.tall", "body.square"])
    lengths = {name: torch.rand(SHAPES[name][0]) + 0.5 for name in ("body.tall", "body.square")}
    tensors |= {f"base_model.model.{name}.lora_magnitude_vector": one for name, one in lengths.items()}
    file = opened(adapter(tmp_path, tensors, use_dora=True), base)
    for name, one in lengths.items():
        direction = TensorFile(base).tensor(f"{name}.weight").double().numpy() + 2 * product(tensors, name)
        expected = one.numpy()[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        np.testing.assert_allclose(file.tensor(f"{name}.weight").numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            file.read_float32(f"{name}.weight", 4, 11), expected.ravel()[4:11], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dora", [False, True])
def test_weights_stored_as_inputs_by_outputs_are_changed_by_the_transposed_product(tmp_path, base, dora):
    plain = {name: TensorFile(base).tensor(name) for name in TensorFile(base).entries}
    flipped = {name: value.T.contiguous() if value.ndim == 2 else value for name, value in plain.items()}
    save_file(flipped, tmp_path / "flipped.safetensors")
    tensors = factors()
    if dora:
        tensors |= {
            f"base_model.model.{name}.lora_magnitude_vector": torch.rand(SHAPES[name][0]) for name in SHAPES
        }
    # PEFT may leave fan_in_fan_out as it was: the shapes decide, and square weights follow the others.
    folder = adapter(tmp_path, tensors, fan_in_fan_out=False, use_dora=dora)
    straight = opened(folder, base)
    turned = opened(folder, tmp_path / "flipped.safetensors")
    for name in SHAPES:
        found, expected = turned.tensor(f"{name}.weight"), straight.tensor(f"{name}.weight").T
        torch.testing.assert_close(found, expected)
        part = turned.read_float32(f"{name}.weight", 3, 17)
        np.testing.assert_allclose(part, expected.flatten()[3:17].numpy(), rtol=1e-5, atol=1e-6)


def test_whole_weights_replace_the_bases_and_new_heads_are_left_out_by_name(tmp_path, base, caplog):
    tensors = factors() | {
        "base_model.model.head.weight": torch.ones(4, 5),
        "base_model.model.classifier.modules_to_save.weight": torch.ones(3, 5),
    }
    folders = [adapter(tmp_path, tensors, name, modules_to_save=["head", "classifier"]) for name in "ab"]
    file = opened(folders[0], base)
    assert torch.equal(file.tensor("head.weight"), torch.ones(4, 5))
    vectors = TaskVectors.load(dict(zip("ab", folders, strict=True)), base)
    assert [one.names for one in vectors.left_out] == [("classifier.weight",)]
    assert "classifier.weight" in caplog.text
    assert measure(vectors)["task_vector_cosine_similarity"].item() == pytest.approx(1)


def test_prefixes_of_the_adapter_and_the_base_may_differ(tmp_path, base):
    tensors = factors()
    plain = {name: TensorFile(base).tensor(name) for name in TensorFile(base).entries}
    expected = opened(adapter(tmp_path, tensors), base).tensor("body.tall.weight")
    save_file({f"module.net.{name}": value for name, value in plain.items()}, tmp_path / "outer.safetensors")
    found = opened(tmp_path / "adapter", tmp_path / "outer.safetensors")
    assert torch.equal(found.tensor("module.net.body.tall.weight"), expected)
    save_file(
        {name.removeprefix("body."): value for name, value in plain.items()}, tmp_path / "inner.safetensors"
    )
    found = opened(tmp_path / "adapter", tmp_path / "inner.safetensors")
    assert torch.equal(found.tensor("tall.weight"), expected)


def test_an_adapters_hash_covers_settings_and_base(tmp_path, base):
    tensors, store = factors(), Store(tmp_path / "store")
    folder = adapter(tmp_path, tensors)
    one = hub.open_checkpoint(folder, store, base)
    assert hub.open_checkpoint(folder, store, base).sha256 == one.sha256
    adapter(tmp_path, tensors, lora_alpha=7)
    assert hub.open_checkpoint(folder, store, base).sha256 != one.sha256
    with pytest.raises(UserError, match=r"Expected complete weights, but .* is a LoRA adapter"):
        hub.open_checkpoint(folder, store)


def test_the_output_of_a_fused_attention_is_changed_twice_as_peft_trains_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "in_proj_weight": (12, 4),
        "out_proj.weight": (4, 4),
        "in_proj_bias": (12,),
        "out_proj.bias": (4,),
    }
    plain = {f"attn.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(plain, tmp_path / "base.safetensors")
    tensors = {
        f"base_model.model.attn.{inner}lora_{x}.weight": torch.randn(shape, generator=generator)
        for inner, outputs in (("", 12), ("base_layer.out_proj.", 4))
        for x, shape in (("A", (RANK, 4)), ("B", (outputs, RANK)))
    }
    file = opened(adapter(tmp_path, tensors), tmp_path / "base.safetensors")
    for name, inner, times in (("in_proj_weight", "", 1), ("out_proj.weight", "base_layer.out_proj.", 2)):
        a, b = (tensors[f"base_model.model.attn.{inner}lora_{x}.weight"].numpy() for x in "AB")
        expected = plain[f"attn.{name}"].numpy() + times * 2 * b @ a
        np.testing.assert_allclose(file.tensor(f"attn.{name}").numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "of type LOHA, but only LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which also changes the base"),
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"r": "8"}, "to contain a positive integer r"),
        ({"lora_alpha": None}, "a number lora_alpha"),
        ({"use_dora": True}, "use_dora in its settings does not match its weights"),
        ({"alpha_pattern": {"(": 2}}, "not a valid regular expression"),
    ],
)
def test_what_is_no_plain_adapter_is_refused_with_the_reason(tmp_path, base, settings, message):
    with pytest.raises(UserError, match=message):
        opened(adapter(tmp_path, factors(), **settings), base)


def test_an_adapter_that_is_not_whole_or_of_another_base_is_refused(tmp_path, base):
    half = {name: value for name, value in factors().items() if "tall.lora_B" not in name}
    with pytest.raises(UserError, match=r"contains only lora_A of 'body\.tall'"):
        opened(adapter(tmp_path, half), base)
    renamed = {name.replace("tall", "long"): value for name, value in factors().items()}
    with pytest.raises(UserError, match=r"changes 1 modules that are not in the base, such as 'body\.long'"):
        opened(adapter(tmp_path, renamed), base)
    (adapter(tmp_path, factors(), "bare") / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        opened(tmp_path / "bare", base)
    (tmp_path / "bare/adapter_config.json").write_bytes(b"\xff{")
    with pytest.raises(UserError, match="is not valid JSON"):
        opened(tmp_path / "bare", base)
    (tmp_path / "bare/adapter_config.json").write_text("[1]")
    with pytest.raises(UserError, match="does not contain the settings of an adapter"):
        opened(tmp_path / "bare", base)
    (tmp_path / "bare/adapter_config.json").unlink()
    (tmp_path / "bare/adapter_config.json").mkdir()
    with pytest.raises(UserError, match=r"There is no adapter_config\.json in .*bare"):
        opened(tmp_path / "bare", base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_model.model.body.wide.weight": torch.ones(12, 6)},
            "as well as whole weights of body.wide.weight",
        ),
        ({"base_model.model.body.wide.lora_B.bias": torch.ones(12)}, "has biases in its low-rank factors"),
        (
            {"base_model.model.body.wide.lora_A.weight": torch.ones(RANK, 5)},
            r"does not fit 'body\.wide\.weight'",
        ),
    ],
)
def test_tensors_that_do_not_belong_to_an_adapter_are_refused(tmp_path, base, changes, message):
    with pytest.raises(UserError, match=message):
        opened(adapter(tmp_path, factors() | changes), base)


def test_an_adapter_without_factors_is_refused(tmp_path, base):
    whole = {"base_model.model.head.weight": torch.ones(4, 5)}
    with pytest.raises(UserError, match=r"Expected a LoRA adapter, but .* contains no lora_A and lora_B"):
        opened(adapter(tmp_path, whole), base)


def test_an_adapter_of_a_quantised_base_is_refused(tmp_path):
    save_file({"body.wide.weight": torch.ones(12, 6, dtype=torch.int8)}, tmp_path / "base.safetensors")
    with pytest.raises(
        UserError, match=r"'body\.wide\.weight' of the base is quantised.*model\.dequantize\(\)"
    ):
        opened(adapter(tmp_path, factors(["body.wide"])), tmp_path / "base.safetensors")


def test_dora_needs_one_magnitude_per_output(tmp_path, base):
    tensors = factors(["body.wide"]) | {"base_model.model.body.wide.lora_magnitude_vector": torch.ones(11)}
    with pytest.raises(UserError, match="must contain one magnitude per output"):
        opened(adapter(tmp_path, tensors, use_dora=True), base)


def test_one_exchange_of_a_prefix_has_to_place_every_module(tmp_path):
    save_file(
        {"wide.weight": torch.ones(12, 6), "tall.weight": torch.ones(5, 9)}, tmp_path / "base.safetensors"
    )
    tensors = {
        name.replace("body.tall", "tall"): value
        for name, value in factors(["body.wide", "body.tall"]).items()
    }
    with pytest.raises(
        UserError, match=r"changes 1 modules that are not in the base, such as '(tall|body\.wide)'"
    ):
        opened(adapter(tmp_path, tensors), tmp_path / "base.safetensors")


@pytest.mark.parametrize("prefix", ["base_model.", ""])
def test_an_adapter_in_a_pytorch_file_is_read_whatever_its_prefix(tmp_path, base, prefix):
    tensors = factors() | {"base_model.model.head.weight": torch.arange(20.0).reshape(4, 5)}
    folder = adapter(tmp_path, tensors)
    (folder / "adapter_model.safetensors").unlink()
    renamed = {prefix + name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    torch.save(renamed, folder / "adapter_model.bin")
    file, plain = opened(folder, base), TensorFile(base)
    for name in SHAPES:
        expected = plain.tensor(f"{name}.weight").double().numpy() + 2 * product(tensors, name)
        np.testing.assert_allclose(file.tensor(f"{name}.weight").numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(file.tensor("head.weight"), np.arange(20).reshape(4, 5))
    np.testing.assert_array_equal(file.read_float32("head.weight", 3, 7), np.arange(3, 7))
    assert {name for name in file.entries if file.is_adapted(name)} == {f"{name}.weight" for name in SHAPES}
    file.check_unchanged()
    base.unlink()
    save_file({"head.weight": torch.ones(4, 5)}, base)
    with pytest.raises(UserError, match="was changed while it was in use"):
        file.check_unchanged()


class Network(torch.nn.Module):
    """Every kind of layer that adapters change."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(11, 6)
        self.wide, self.square = torch.nn.Linear(6, 12), torch.nn.Linear(6, 6)
        self.kernel, self.point = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 5, 1)
        self.head = torch.nn.Linear(6, 4)


PEFT = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"wide": 5, "^kernel": 2}, "alpha_pattern": {"square": 3, "words": 11}},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "head": {"modules_to_save": ["head"], "use_dora": True, "use_rslora": True},
}


@pytest.mark.parametrize("settings", PEFT.values(), ids=PEFT)
def test_the_merged_weights_are_those_of_peft(tmp_path, settings):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = Network()
    save_file(network.state_dict(), tmp_path / "base.safetensors")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["words", "wide", "square", "kernel", "point"], **settings
    )
    model = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "modules_to_save" in name or parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    file = opened(tmp_path / "adapter", tmp_path / "base.safetensors")
    assert file.entries.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(file.tensor(name).float(), value, msg=name)
        np.testing.assert_allclose(
            file.read_float32(name, 1, 4), value.flatten()[1:4].numpy(), rtol=1e-4, atol=1e-5
        )


def gpt2():
    import transformers

    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, vocab_size=20, n_positions=6, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config), ["c_attn", "c_proj", "c_fc", "wte"]


def clip_tower():
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4, projection_dim=4,
    )  # fmt: skip
    return transformers.CLIPVisionModelWithProjection(config), [
        "q_proj",
        "v_proj",
        "fc1",
        "visual_projection",
    ]


def attention():
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(8, 2)}), ["attn"]


@pytest.mark.parametrize("made", [gpt2, clip_tower, attention])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_models_with_adapters_are_those_that_peft_saves(tmp_path, made, dora):
    peft = pytest.importorskip("peft")
    if made is attention and dora:
        pytest.skip("PEFT has no DoRA of fused attention")
    torch.manual_seed(0)
    network, targets = made()
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(tmp_path / "base", max_shard_size="2KB")
    else:
        (tmp_path / "base").mkdir()
        save_file(network.state_dict(), tmp_path / "base/model.safetensors")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, use_dora=dora)
    model = peft.get_peft_model(network, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    if hasattr(merged, "save_pretrained"):
        merged.save_pretrained(tmp_path / "merged")
    else:
        (tmp_path / "merged").mkdir()
        save_file(merged.state_dict(), tmp_path / "merged/model.safetensors")
    store = Store(None)
    expected = hub.open_checkpoint(tmp_path / "merged", store)
    found = hub.open_checkpoint(tmp_path / "adapter", store, tmp_path / "base")
    assert found.names == expected.names
    for name in expected.names:
        torch.testing.assert_close(found.tensor(name), expected.tensor(name), msg=name)
