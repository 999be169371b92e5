"""Models as transformers saves them: measured, merged, and opened by transformers again, for every kind of architecture."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mergeability.errors import UserError
from mergeability.evaluation.merge import describe
from mergeability.merging import TaskArithmetic, Ties, apply
from mergeability.metrics.measure import WEIGHT_SPACE, measure
from mergeability.pipeline.saving import merge_card, save_merge
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import hub

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 16, "patch_size": 8}
TEXT = {
    **SMALL,
    "vocab_size": 40,
    "max_position_embeddings": 8,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def llama():
    settings = {**TEXT, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).to(torch.bfloat16)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=40, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))


def dinov2():
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **IMAGES
    )
    return transformers.Dinov2Model(config)


def siglip():
    config = transformers.SiglipConfig(text_config=TEXT, vision_config={**SMALL, **IMAGES})
    return transformers.SiglipModel(config)


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **IMAGES, num_labels=3))


def clip_config(**settings):
    return transformers.CLIPConfig(
        vision_config={**SMALL, **IMAGES}, text_config=TEXT, projection_dim=8, **settings
    )


def clip():
    return transformers.CLIPModel(clip_config())


KINDS = [llama, gpt2, t5, bert, dinov2, siglip, vit, clip]


def made(kind, seed=None):
    """The base, or a model that was moved a little from it in every parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind().eval()
        torch.manual_seed(seed or 0)
        with torch.no_grad():
            for parameter in model.parameters():
                if seed is None:
                    # No zeros or ones: what is swapped shows.
                    parameter += 0.05 * torch.randn(parameter.shape).to(parameter.dtype)
        if seed is not None:
            base = made(kind)
            model.load_state_dict(base.state_dict())
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.02 * torch.randn(parameter.shape).to(parameter.dtype)
    return model


def saved(kind, folder, **options):
    paths = {}
    for name, seed in (("base", None), ("a", 1), ("b", 2)):
        made(kind, seed).save_pretrained(folder / name, **options)
        paths[name] = folder / name
    return paths


def opened(paths, store, towers="visual", **options):
    models = {name: hub.open_checkpoint(paths[name], store, paths["base"], towers) for name in ("a", "b")}
    base = hub.open_checkpoint(paths["base"], store, towers=towers)
    return TaskVectors.load(models, base, store=store, **options)


def vector(kind, seed, takes=lambda name: True):
    """The change of a model as one vector, from the models themselves."""
    base, model = made(kind), made(kind, seed)
    then = dict(base.named_parameters())
    return np.concatenate(
        [
            (now.detach().float() - then[name].detach().float()).numpy().ravel()
            for name, now in model.named_parameters()
            if takes(name)
        ]
    ).astype(np.float64)


def measured(vectors):
    """Both kinds of metric, of Gram matrices and of singular values."""
    return measure(
        vectors, {name: WEIGHT_SPACE[name] for name in ("task_vector_cosine_similarity", "stable_rank")}
    )


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def merged(vectors, folder, alpha=0.5, **options):
    method = TaskArithmetic()
    state = apply(vectors.base_checkpoint.state_dict(), vectors.assembled(method(vectors)), alpha)
    card = merge_card(vectors, describe(method), alpha, {}, alpha_from="given")
    return save_merge(folder, state, card, base=vectors.base_checkpoint, **options).parent


@pytest.mark.parametrize(("kind", "sharded"), [(kind, kind in (llama, clip)) for kind in KINDS])
def test_a_model_is_measured_merged_and_opened_again(kind, sharded, tmp_path):
    paths = saved(kind, tmp_path, **({"max_shard_size": "6KB"} if sharded else {}))
    assert any(path.name.endswith(".index.json") for path in paths["a"].iterdir()) == sharded
    (paths["base"] / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    vectors = opened(paths, Store(tmp_path / "store"), towers="both")
    found = measured(vectors)["task_vector_cosine_similarity"].item()
    assert found == pytest.approx(cosine(vector(kind, 1), vector(kind, 2)), abs=1e-6)
    folder = merged(vectors, tmp_path / "merged")
    cls = type(made(kind))
    model, report = cls.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    base, one, other = (dict(made(kind, seed).named_parameters()) for seed in (None, 1, 2))
    for name, value in model.named_parameters():
        start = base[name].float()
        expected = start + 0.5 * ((one[name].float() - start) + (other[name].float() - start))
        torch.testing.assert_close(value, expected.to(value.dtype), msg=name)
    assert (folder / "tokenizer_config.json").is_file()
    assert set(load_file(folder / "model.safetensors")) == names_in(paths["base"])
    card = (folder / "README.md").read_text()
    assert all(sha256 in card for sha256 in (vectors.base_hash, *vectors.hashes.values()))


def names_in(folder):
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


def test_an_index_given_directly_is_the_folder(tmp_path):
    paths = saved(llama, tmp_path, max_shard_size="6KB")
    direct = {name: path / "model.safetensors.index.json" for name, path in paths.items()}
    one, other = (measured(opened(which, Store(None))) for which in (paths, direct))
    assert one.equals(other)
    notebook = TaskVectors.load({name: direct[name] for name in "ab"}, base=paths["base"])
    assert measured(notebook).equals(one)


def test_a_sharded_pytorch_model_is_the_safetensors_one(tmp_path):
    paths = saved(bert, tmp_path, max_shard_size="6KB")
    expected = measured(opened(paths, Store(None)))
    pickled = {}
    for name, path in paths.items():
        pickled[name] = tmp_path / f"{name}_bin"
        pickled[name].mkdir()
        index = json.loads((path / "model.safetensors.index.json").read_text())
        for file in sorted(set(index["weight_map"].values())):
            torch.save(load_file(path / file), pickled[name] / file.replace(".safetensors", ".bin"))
        index["weight_map"] = {
            key: file.replace(".safetensors", ".bin") for key, file in index["weight_map"].items()
        }
        (pickled[name] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = measured(opened(pickled, Store(tmp_path / "store")))
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda index: index | {"weight_map": {}}, "contains no weight_map"),
        (lambda index: [], "contains no weight_map"),
        (lambda index: index | {"weight_map": index["weight_map"] | {"more": "model-00001.safetensors"}}, "missing from its folder"),
        (lambda index: index | {"weight_map": {"a": "../b/model.safetensors"}}, "to map every tensor to a file in the folder of the index, but it does not for a. Download"),
        (lambda index: index | {"weight_map": dict(list(index["weight_map"].items())[1:])}, "that this index does not list"),
        (lambda index: index | {"weight_map": index["weight_map"] | {"more": next(iter(index["weight_map"].values()))}},
         "missing from the files of the model: more"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, broken, message):
    made(bert).save_pretrained(tmp_path / "m", max_shard_size="6KB")
    path = tmp_path / "m/model.safetensors.index.json"
    path.write_text(json.dumps(broken(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        hub.open_checkpoint(tmp_path / "m", Store(None))


def classifier(labels, cls, config):
    def kind():
        config.num_labels = labels
        return cls(config)

    return kind


def test_heads_of_other_sizes_are_left_out_and_named(tmp_path, caplog):
    config = transformers.ViTConfig(**SMALL, **IMAGES)
    base = transformers.ViTModel(config)
    base.save_pretrained(tmp_path / "base")
    for name, seed, labels in (("a", 1, 3), ("b", 2, 5)):
        model = classifier(labels, transformers.ViTForImageClassification, config)()
        own = dict(base.state_dict())
        torch.manual_seed(seed)
        state = model.state_dict()
        for key in state:
            short = key.removeprefix("vit.")
            if short in own:
                state[key] = own[short] + 0.01 * torch.randn(own[short].shape)
        model.load_state_dict(state)
        model.save_pretrained(tmp_path / name)
    vectors = opened({name: tmp_path / name for name in ("base", "a", "b")}, Store(None))
    left_out = {name for one in vectors.left_out for name in one.names}
    assert left_out == {"classifier.weight", "classifier.bias", "pooler.dense.weight", "pooler.dense.bias"}
    assert all(name in caplog.text for name in left_out)
    theirs = load_file(tmp_path / "base/model.safetensors")
    assert set(vectors.names) == {name for name in theirs if not name.startswith("pooler")}
    plain = {name: load_file(tmp_path / name / "model.safetensors") for name in "ab"}
    deltas = [
        np.concatenate(
            [(plain[name][f"vit.{key}"] - theirs[key]).numpy().ravel() for key in vectors.names]
        ).astype(float)
        for name in "ab"
    ]
    assert measured(vectors)["task_vector_cosine_similarity"].item() == pytest.approx(
        cosine(*deltas), abs=1e-6
    )


def test_equal_heads_are_merged_with_a_word_and_left_out_on_request(tmp_path, caplog):
    paths = saved(vit, tmp_path)
    vectors = opened(paths, Store(None))
    assert "classifier.weight" in vectors.names
    assert "classifier" in caplog.text
    assert "suite.exclude" in " ".join(vectors.notes)
    without = opened(paths, Store(None), exclude="^classifier")
    assert set(vectors.names) - set(without.names) == {"classifier.weight", "classifier.bias"}
    assert not without.notes
    found = measured(without)["task_vector_cosine_similarity"].item()
    expected = cosine(*(vector(vit, seed, lambda name: not name.startswith("classifier")) for seed in (1, 2)))
    assert found == pytest.approx(expected, abs=1e-6)
    only = opened(paths, Store(None), include=[r"attention\."], exclude=["bias$"])
    assert only.names
    assert all("attention." in name and not name.endswith("bias") for name in only.names)
    for options in ({"exclude": "no_such"}, {"include": "["}, {"include": "x^"}):
        with pytest.raises(UserError):
            opened(paths, Store(None), **options)
    with pytest.raises(UserError, match="No tensors are left"):
        opened(paths, Store(None), exclude=".")


def test_a_choice_of_tensors_has_norms_of_its_own_in_the_store(tmp_path):
    paths, store = saved(vit, tmp_path), Store(tmp_path / "store")
    whole = opened(paths, store).relative_norms()
    part = opened(paths, store, include=[r"attention\."]).relative_norms()
    assert whole != part
    assert part == opened(paths, Store(None), include=[r"attention\."]).relative_norms()


def test_clip_classifiers_are_compared_by_their_towers(tmp_path):
    base = transformers.CLIPVisionModelWithProjection(clip_config().vision_config)
    base.save_pretrained(tmp_path / "base")
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        model = transformers.CLIPForImageClassification(clip_config(num_labels=3 + seed))
        state = model.state_dict()
        own = base.state_dict()
        state |= {
            key: own[key] + 0.01 * torch.randn(own[key].shape)
            for key in state
            if key in own and own[key].is_floating_point()
        }
        model.load_state_dict(state)
        model.save_pretrained(tmp_path / name)
    vectors = opened({name: tmp_path / name for name in ("base", "a", "b")}, Store(None))
    assert {name for one in vectors.left_out for name in one.names} == {
        "classifier.weight",
        "classifier.bias",
    }
    folder = merged(vectors, tmp_path / "merged")
    _, report = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_the_text_tower_is_left_out_by_name_or_merged_on_request(tmp_path, caplog):
    paths = saved(clip, tmp_path)
    caplog.set_level("INFO")
    visual = opened(paths, Store(None))
    assert all(name.startswith("visual.") for name in visual.names)
    (one,) = visual.left_out
    assert "the text tower, which differs from the base's in a, b" in str(one)
    assert str(one) in caplog.text
    assert all(
        "text_model" in name or name in ("text_projection.weight", "logit_scale") for name in one.names
    )
    both = opened(paths, Store(None), towers="both")
    assert set(visual.names) < set(both.names)
    assert "token_embedding.weight" in both.names
    folder = merged(visual, tmp_path / "merged")
    model = transformers.CLIPModel.from_pretrained(folder)
    base = made(clip)
    text = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(model.state_dict()[text], base.state_dict()[text]), "what is left out is the base's"
    patch = "vision_model.embeddings.patch_embedding.weight"
    assert not torch.equal(model.state_dict()[patch], base.state_dict()[patch])


@pytest.mark.parametrize("kind", [bert, vit])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"net.module._orig_mod.{name}",
        lambda name: f"model.encoder.{name}",
        lambda name: name.replace("layer.0.", "layer.0._orig_mod."),
    ],
)
def test_a_wrapped_network_is_the_same_network(tmp_path, kind, rename):
    paths = saved(kind, tmp_path)
    expected = measured(opened(paths, Store(None)))
    state = load_file(paths["a"] / "model.safetensors")
    save_file({rename(name): value for name, value in state.items()}, tmp_path / "a.safetensors")
    assert measured(opened(paths | {"a": tmp_path / "a.safetensors"}, Store(None))).equals(expected)
    own = load_file(paths["base"] / "model.safetensors")
    save_file({rename(name): value for name, value in own.items()}, tmp_path / "base.safetensors")
    assert measured(opened(paths | {"base": tmp_path / "base.safetensors"}, Store(None))).equals(expected)


def test_quantised_weights_are_refused(tmp_path):
    paths = saved(bert, tmp_path)
    state = load_file(paths["a"] / "model.safetensors")
    name = next(name for name in state if name.endswith("query.weight"))
    for changed in (
        {name: (state[name] * 100).to(torch.int8)},
        {f"{name.removesuffix('weight')}qweight": torch.ones(3, 4, dtype=torch.int32)},
        {name: state[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)},
    ):
        save_file(state | changed, tmp_path / "q.safetensors")
        with pytest.raises(UserError, match=r"quantised weights.*dequantize"):
            opened(paths | {"a": tmp_path / "q.safetensors"}, Store(None))


def test_integers_that_differ_are_named_and_buffers_are_not(tmp_path):
    paths = saved(bert, tmp_path)
    for name, number in (("base", 1), ("a", 2), ("b", 1)):
        state = load_file(paths[name] / "model.safetensors")
        extra = {"steps": torch.tensor([number]), "bn.num_batches_tracked": torch.tensor(number)}
        save_file(state | extra, paths[name] / "model.safetensors", {"format": "pt"})
    (one,) = opened(paths, Store(None)).left_out
    assert (one.names, one.owners) == (("steps",), ("a",))


def test_merges_of_a_model_that_is_no_whole_one_are_as_before(tmp_path):
    paths = saved(vit, tmp_path)
    files = {name: path / "model.safetensors" for name, path in paths.items()}
    (paths["base"] / "config.json").unlink()
    vectors = opened(files, Store(None))
    assert Ties()(vectors)
    folder = merged(vectors, tmp_path / "merged")
    assert json.loads((folder / "card.json").read_text())["names"] == "open_clip"


@pytest.mark.parametrize("kind", [llama, bert, clip, dinov2])
@pytest.mark.parametrize("change", ["shape", "gone"])
def test_what_is_needed_is_no_head(tmp_path, kind, change):
    """Embeddings next to the blocks, in particular: with others, it is another architecture."""
    paths = saved(kind, tmp_path)
    state = load_file(paths["a"] / "model.safetensors")
    name = next(name for name in state if "embed" in name and name.endswith("weight") and "text" not in name)
    value = state.pop(name)
    save_file(
        state if change == "gone" else state | {name: value[:-1].clone()}, paths["a"] / "model.safetensors"
    )
    with pytest.raises(UserError, match=r"architectures differ|lacks 1|missing"):
        opened(paths, Store(None))
