"""Names of tensors: every known layout of one tower becomes the same canonical tensors."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergeability.errors import UserError
from mergeability.weights.names import Source, canonical_shape, canonical_sources, layout_name, read_names

GOLDEN = Path(__file__).parent.parent / "golden"

# Written by hand: open_clip's name, Hugging Face's names (three where queries, keys and values are apart).
TABLE = """
class_embedding                           embeddings.class_embedding
conv1.weight                              embeddings.patch_embedding.weight
positional_embedding                      embeddings.position_embedding.weight
ln_pre.weight                             pre_layrnorm.weight
ln_pre.bias                               pre_layrnorm.bias
transformer.resblocks.0.ln_1.weight          encoder.layers.0.layer_norm1.weight
transformer.resblocks.0.ln_1.bias            encoder.layers.0.layer_norm1.bias
transformer.resblocks.0.attn.in_proj_weight  encoder.layers.0.self_attn.q_proj.weight encoder.layers.0.self_attn.k_proj.weight encoder.layers.0.self_attn.v_proj.weight
transformer.resblocks.0.attn.in_proj_bias    encoder.layers.0.self_attn.q_proj.bias encoder.layers.0.self_attn.k_proj.bias encoder.layers.0.self_attn.v_proj.bias
transformer.resblocks.0.attn.out_proj.weight encoder.layers.0.self_attn.out_proj.weight
transformer.resblocks.0.attn.out_proj.bias   encoder.layers.0.self_attn.out_proj.bias
transformer.resblocks.0.ln_2.weight          encoder.layers.0.layer_norm2.weight
transformer.resblocks.0.ln_2.bias            encoder.layers.0.layer_norm2.bias
transformer.resblocks.0.mlp.c_fc.weight      encoder.layers.0.mlp.fc1.weight
transformer.resblocks.0.mlp.c_fc.bias        encoder.layers.0.mlp.fc1.bias
transformer.resblocks.0.mlp.c_proj.weight    encoder.layers.0.mlp.fc2.weight
transformer.resblocks.0.mlp.c_proj.bias      encoder.layers.0.mlp.fc2.bias
transformer.resblocks.1.ln_1.weight          encoder.layers.1.layer_norm1.weight
transformer.resblocks.1.ln_1.bias            encoder.layers.1.layer_norm1.bias
transformer.resblocks.1.attn.in_proj_weight  encoder.layers.1.self_attn.q_proj.weight encoder.layers.1.self_attn.k_proj.weight encoder.layers.1.self_attn.v_proj.weight
transformer.resblocks.1.attn.in_proj_bias    encoder.layers.1.self_attn.q_proj.bias encoder.layers.1.self_attn.k_proj.bias encoder.layers.1.self_attn.v_proj.bias
transformer.resblocks.1.attn.out_proj.weight encoder.layers.1.self_attn.out_proj.weight
transformer.resblocks.1.attn.out_proj.bias   encoder.layers.1.self_attn.out_proj.bias
transformer.resblocks.1.ln_2.weight          encoder.layers.1.layer_norm2.weight
transformer.resblocks.1.ln_2.bias            encoder.layers.1.layer_norm2.bias
transformer.resblocks.1.mlp.c_fc.weight      encoder.layers.1.mlp.fc1.weight
transformer.resblocks.1.mlp.c_fc.bias        encoder.layers.1.mlp.fc1.bias
transformer.resblocks.1.mlp.c_proj.weight    encoder.layers.1.mlp.fc2.weight
transformer.resblocks.1.mlp.c_proj.bias      encoder.layers.1.mlp.fc2.bias
ln_post.weight                            post_layernorm.weight
ln_post.bias                              post_layernorm.bias
"""
HUGGING_FACE = {fields[0]: fields[1:] for fields in map(str.split, TABLE.strip().splitlines())}

WIDTH, HIDDEN, EMBEDDING = 6, 10, 4
SHAPES = {
    "class_embedding": (WIDTH,),
    "conv1.weight": (WIDTH, 3, 2, 2),
    "positional_embedding": (5, WIDTH),
    "proj": (WIDTH, EMBEDDING),
    "attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "attn.in_proj_bias": (3 * WIDTH,),
    "attn.out_proj.weight": (WIDTH, WIDTH),
    "mlp.c_fc.weight": (HIDDEN, WIDTH),
    "mlp.c_fc.bias": (HIDDEN,),
    "mlp.c_proj.weight": (WIDTH, HIDDEN),
}


@pytest.fixture
def tower():
    """A random open_clip tower of two blocks, names without the prefix."""
    random = np.random.default_rng(0)

    def shape(name):
        return next((SHAPES[end] for end in SHAPES if name.endswith(end)), (WIDTH,))

    return {name: random.normal(size=shape(name)) for name in [*HUGGING_FACE, "proj"]}


def as_hugging_face(tower, transformer="vision_model.", wrapper=""):
    """Rename and split by the table, as a person would."""
    renamed = {}
    for name, others in HUGGING_FACE.items():
        parts = np.split(tower[name], 3) if len(others) == 3 else [tower[name]]
        renamed |= {wrapper + transformer + other: part for other, part in zip(others, parts, strict=True)}
    if "proj" in tower:
        renamed[wrapper + "visual_projection.weight"] = np.ascontiguousarray(tower["proj"].T)
    return renamed


def read(file):
    """Read a file's tensors as their sources say: stacked, then transposed."""
    tensors = {}
    for name, source in canonical_sources(file).items():
        parts = [file[part] for part in source.names]
        tensor = np.concatenate(parts) if len(parts) > 1 else parts[0]
        tensors[name] = tensor.T if source.transposed else tensor
        assert canonical_shape([part.shape for part in parts], source.transposed) == tensors[name].shape
    return tensors


def assert_same(tensors, tower):
    assert sorted(tensors) == sorted(f"visual.{name}" for name in tower)
    for name, tensor in tower.items():
        assert np.array_equal(tensors[f"visual.{name}"], tensor), name


TEXT_TOWER = {
    "text_model.embeddings.token_embedding.weight": np.zeros((7, 3)),
    "text_model.embeddings.position_ids": np.arange(8)[None],
    "text_model.encoder.layers.0.self_attn.q_proj.weight": np.zeros((3, 3)),
    "text_model.final_layer_norm.bias": np.zeros(3),
    "text_projection.weight": np.zeros((4, 3)),
    "logit_scale": np.zeros(()),
}


@pytest.mark.parametrize("wrapper", ["", "model.", "module."])
@pytest.mark.parametrize("transformer", ["vision_model.", ""])
@pytest.mark.parametrize("projection", [True, False])
def test_hugging_face_towers_of_both_generations_become_canonical(tower, transformer, wrapper, projection):
    if not projection:
        del tower["proj"]
    file = as_hugging_face(tower, transformer, wrapper)
    assert len(file) == 7 + 2 * 16 + projection
    file[f"{wrapper}{transformer}embeddings.position_ids"] = np.arange(5)[None]
    assert_same(read(file), tower)


@pytest.mark.parametrize("text_prefix", ["", "model."])
def test_the_text_tower_of_a_whole_hugging_face_clip_is_left_out(tower, text_prefix):
    text = {text_prefix + name: tensor for name, tensor in TEXT_TOWER.items()}
    assert_same(read(text | as_hugging_face(tower, wrapper="model.")), tower)


@pytest.mark.parametrize("name", ["base", "task0", "task3"])
@pytest.mark.parametrize("transformer", ["vision_model.", ""])
def test_golden_checkpoints_renamed_and_split_come_back(name, transformer):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    tower = {name.removeprefix("visual."): tensor for name, tensor in golden.items()}
    assert set(tower) == {*HUGGING_FACE, "proj"}
    assert_same(read(as_hugging_face(tower, transformer)), tower)
    assert_same(read(golden), tower)


def test_twelve_blocks_keep_their_numbers(tower):
    file = {name: tensor for name, tensor in as_hugging_face(tower).items() if ".layers.1." not in name}
    first = {name: tensor for name, tensor in file.items() if ".layers.0." in name}
    for block in range(1, 12):
        file |= {name.replace("s.0.", f"s.{block}."): tensor + block for name, tensor in first.items()}
    tensors = read(file)
    assert len(tensors) == 8 + 12 * 12
    for block in range(12):
        expected = tower["transformer.resblocks.0.attn.in_proj_weight"] + block
        assert np.array_equal(tensors[f"visual.transformer.resblocks.{block}.attn.in_proj_weight"], expected)


@pytest.mark.parametrize("prefix", ["visual.", "model.visual.", "module.visual.", ""])
def test_open_clip_names_need_nothing_but_the_prefix(tower, prefix):
    text = ["token_embedding.weight", "transformer.resblocks.0.ln_1.weight", "logit_scale"] if prefix else []
    sources = canonical_sources([prefix + name for name in tower] + text)
    assert sources == {f"visual.{name}": Source((prefix + name,)) for name in tower}


@pytest.mark.parametrize("prefix", ["visual.", "module.visual.", ""])
@pytest.mark.parametrize("weight_ending", ["_weight", ".weight"])
@pytest.mark.parametrize("bias", ["apart", "fused"])
@pytest.mark.parametrize("blocks", [[0], [0, 1]])
def test_split_attention_under_open_clip_names_is_fused(tower, prefix, weight_ending, bias, blocks):
    file = {prefix + name: tensor for name, tensor in tower.items()}
    for block in blocks:
        attention = f"{prefix}transformer.resblocks.{block}.attn."
        weight = file.pop(attention + "in_proj_weight")
        file |= {
            attention + "q_proj" + weight_ending: weight[:WIDTH],
            attention + "k_proj" + weight_ending: weight[WIDTH : 2 * WIDTH],
            attention + "v_proj" + weight_ending: weight[2 * WIDTH :],
        }
        if bias == "apart":
            values = file.pop(attention + "in_proj_bias")
            file |= {
                attention + "q_proj.bias": values[:WIDTH],
                attention + "k_proj.bias": values[WIDTH : 2 * WIDTH],
                attention + "v_proj.bias": values[2 * WIDTH :],
            }
    assert_same(read(file), tower)


def test_an_attention_pooler_keeps_its_projections_apart():
    # Keys and values have another width than queries there: they do not stack.
    names = ["visual.attn_pool.attn.q_proj_weight", "visual.attn_pool.attn.k_proj_weight"]
    assert canonical_sources(names) == {name: Source((name,)) for name in names}


BERT = ["embeddings.position_ids", "embeddings.word_embeddings.weight", "embeddings.LayerNorm.weight",
        "encoder.layer.0.attention.self.query.weight"]  # fmt: skip
TEXT_MODEL = [
    "text_model.embeddings.token_embedding.weight",
    "text_model.encoder.layers.0.self_attn.q_proj.bias",
]
FLAT_TEXT_MODEL = ["embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight",
                   "encoder.layers.0.layer_norm1.bias", "final_layer_norm.weight"]  # fmt: skip
SIGLIP = ["vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.patch_embedding.bias",
          "vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.post_layernorm.weight"]  # fmt: skip
BLIP = ["vision_model.embeddings.class_embedding", "vision_model.embeddings.patch_embedding.weight",
        "vision_model.encoder.layers.0.self_attn.qkv.weight", "vision_model.post_layernorm.weight"]  # fmt: skip
OPEN_CLIP_TEXT = ["positional_embedding", "transformer.resblocks.0.attn.in_proj_weight"]
RESNET = ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"]


@pytest.mark.parametrize(
    "names", [["a"], ["layer.weight"], RESNET, BERT, OPEN_CLIP_TEXT, TEXT_MODEL, FLAT_TEXT_MODEL, SIGLIP, BLIP, [], ["pre_layrnorm.bias"]]
)  # fmt: skip
def test_other_architectures_keep_their_names(names):
    assert canonical_sources(iter(names)) == {name: Source((name,)) for name in names}


# What training scripts, DataParallel, torch.compile and FSDP put before a network's names, in any order.
PREFIXES = ["net.", "encoder.", "model.", "module.", "_orig_mod.", "model.clip.", "module._orig_mod.net.", "_orig_mod.module.encoder.",
            "image_encoder.model.", "a.b.c.d.", "_fsdp_wrapped_module."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_tower_is_found_behind_any_prefix(tower, prefix):
    beside = {prefix + name: value for name, value in TEXT_TOWER.items()}
    theirs = {prefix + name: value for name, value in as_hugging_face(tower).items()}
    assert_same(read(theirs | beside), tower)
    bare = {prefix + name: value for name, value in as_hugging_face(tower, "").items()}
    assert_same(read(bare), tower)
    for inner in ("visual.", "visual._orig_mod.", "visual.module.", ""):
        ours = {prefix + inner + name: value for name, value in tower.items()}
        assert_same(read(ours), tower)
        if not inner:
            continue
        extra = {"fc.weight": np.zeros((2, 3)), "metric.total": np.zeros(())}
        assert_same(read(ours | extra | beside), tower)
        left_out = read_names([*ours, *extra, *beside]).left_out
        assert (left_out["head"], left_out["other"]) == (["fc.weight"], ["metric.total"])
        weights = [name for name in beside if not name.endswith("position_ids")]
        assert left_out["text tower"] == sorted(weights)
    compiled = {
        (prefix + "visual." + name).replace("resblocks.1.", "resblocks.1._orig_mod."): value
        for name, value in tower.items()
    }
    assert_same(read(compiled), tower)


def test_a_text_tower_is_read_on_request_and_named_otherwise(tower):
    names = [f"net.visual.{name}" for name in tower]
    text = ["net.token_embedding.weight", "net.transformer.resblocks.0.ln_1.weight", "net.logit_scale"]
    one, both = read_names([*names, *text]), read_names([*names, *text], "both")
    assert one.left_out == {"text tower": sorted(text)}
    assert not both.left_out
    assert both.sources.keys() - one.sources.keys() == {name.removeprefix("net.") for name in text}
    for alone in (names, list(as_hugging_face(tower))):
        assert read_names(alone, "both") == read_names(alone)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["vision_model.pre_layrnorm.bias", "vision_model.embeddings.class_embedding"],
         "Hugging Face's CLIP names under 'vision_model.', without a projection"),
        (["pre_layrnorm.bias", "embeddings.class_embedding", "visual_projection.weight"],
         "Hugging Face's CLIP names under '', with a projection"),
        (["module.visual.class_embedding"], "open_clip's names under 'module.visual.'"),
        (["layer.weight"], "open_clip's names under ''"),
    ],
)  # fmt: skip
def test_the_layout_of_a_file_is_described(names, layout):
    assert layout_name(names) == layout


def test_a_tower_that_is_a_part_of_another_network_is_no_clip(tower):
    language = ["model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]
    for names in (
        [f"vision_tower.{name}" for name in as_hugging_face(tower)] + language,
        [f"visual.{name}" for name in tower] + language,
        ["visual.patch_embed.proj.weight", "visual.blocks.0.attn.qkv.weight", *language],
    ):
        assert canonical_sources(names) == {name: Source((name,)) for name in names}


def missing_from(tower, *missing, **layout):
    return [name for name in as_hugging_face(tower, **layout) if name not in missing]


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.0.self_attn.q_proj.weight",
        "encoder.layers.1.self_attn.k_proj.weight",
        "encoder.layers.1.self_attn.v_proj.bias",
        "encoder.layers.0.mlp.fc1.bias",
        "embeddings.class_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "pre_layrnorm.weight",
        "pre_layrnorm.bias",
        "post_layernorm.bias",
    ],
)
@pytest.mark.parametrize("transformer", ["vision_model.", ""])
def test_a_missing_name_is_listed(tower, name, transformer):
    with pytest.raises(UserError) as raised:
        canonical_sources(missing_from(tower, transformer + name, transformer=transformer))
    assert f"missing (1): {transformer}{name}. Save" in str(raised.value)


@pytest.mark.parametrize("transformer", ["vision_model.", ""])
def test_names_that_are_not_understood_are_listed(tower, transformer):
    extra = transformer + "encoder.layers.1.self_attn.q_proj.lora_A.weight"
    with pytest.raises(UserError) as raised:
        canonical_sources([*as_hugging_face(tower, transformer), extra, "classifier.weight"])
    assert f"not understood (1): {extra}. Save" in str(raised.value)


def test_a_missing_block_and_a_long_list_are_counted(tower):
    names = [name.replace("s.1.", "s.2.") for name in as_hugging_face(tower)]
    with pytest.raises(UserError) as raised:
        canonical_sources(names)
    assert "missing (16): vision_model.encoder.layers.1.layer_norm1.bias, " in str(raised.value)
    assert "not understood (16): vision_model.encoder.layers.2.layer_norm1.bias, " in str(raised.value)
    assert str(raised.value).count(" and 11 more") == 2
    assert str(raised.value).count("vision_model.") == 10


def test_a_tower_without_blocks_is_refused(tower):
    with pytest.raises(UserError, match=r"missing \(16\)"):
        canonical_sources([name for name in as_hugging_face(tower) if ".layers." not in name])


def test_a_wild_block_number_costs_nothing(tower):
    extra = "vision_model.encoder.layers.99999999999.mlp.fc1.bias"
    with pytest.raises(UserError, match=r"missing \(16\).*not understood \(1\): " + extra):
        canonical_sources([*as_hugging_face(tower), extra])


ATTENTION = "visual.transformer.resblocks.3.attn."


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["q_proj_weight", "v_proj_weight", "in_proj_bias"], ["k_proj_weight"]),
        (["q_proj_weight", "k_proj_weight", "v_proj_weight"], ["in_proj_bias"]),
        (["q_proj.weight", "k_proj.weight", "v_proj.weight", "k_proj.bias"], ["q_proj.bias", "v_proj.bias"]),
        (["q_proj.bias", "k_proj.bias", "v_proj.bias"], ["in_proj_weight"]),
    ],
)
def test_a_missing_sibling_under_open_clip_names_is_listed(given, missing):
    with pytest.raises(UserError) as raised:
        canonical_sources(["visual.class_embedding", *(ATTENTION + name for name in given)])
    expected = ", ".join(ATTENTION + name for name in missing)
    assert f"missing ({len(missing)}): {expected}. Save" in str(raised.value)


@pytest.mark.parametrize("fused", ["in_proj_weight", "in_proj_bias"])
def test_an_attention_given_twice_is_refused(fused):
    apart = [f"{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")]
    with pytest.raises(UserError, match=rf"both are present for {ATTENTION}{fused}\. Remove"):
        canonical_sources([ATTENTION + name for name in [*apart, fused]])


def test_two_towers_in_one_file_are_refused(tower):
    names = list(as_hugging_face(tower))
    with pytest.raises(UserError, match=r"contains 2, under the prefixes 'visual\.', 'vision_model\.'"):
        canonical_sources([*names, "visual.class_embedding"])
    with pytest.raises(
        UserError, match=r"contains 2, under the prefixes 'vision_model\.', 'module\.vision_model\.'"
    ):
        canonical_sources([*names, *as_hugging_face(tower, wrapper="module.")])


@pytest.mark.parametrize(
    ("shapes", "transposed", "expected"),
    [
        ([()], False, ()),
        ([(7,)], False, (7,)),
        ([(2, 3, 4)], False, (2, 3, 4)),
        ([(2, 3)], True, (3, 2)),
        ([(2,), (2,), (2,)], False, (6,)),
        ([(2, 5), (3, 5), (4, 5)], False, (9, 5)),
        ([(2, 5), (3, 5)], True, (5, 5)),
        ([(2, 5), (1, 5)], True, (5, 3)),
    ],
)
def test_shapes_are_those_of_the_stacked_and_transposed_arrays(shapes, transposed, expected):
    arrays = [np.zeros(shape) for shape in shapes]
    stacked = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    assert (stacked.T if transposed else stacked).shape == expected
    assert canonical_shape(shapes, transposed) == expected


@pytest.mark.parametrize("shapes", [[(2, 3), (2, 4)], [(2, 3), (2,)], [(2,), (2, 1)], [(), ()], [(3,), ()]])
def test_shapes_that_do_not_stack_are_refused(shapes):
    with pytest.raises(ValueError, match="dim"):
        np.concatenate([np.zeros(shape) for shape in shapes])
    with pytest.raises(UserError) as raised:
        canonical_shape(shapes, False)
    assert f"their shapes are {shapes[0]}, {shapes[1]}." in str(raised.value)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_only_matrices_are_transposed(shape):
    with pytest.raises(UserError, match="Expected a matrix"):
        canonical_shape([shape], True)
