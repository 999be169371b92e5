"""Map the names of tensors in known file layouts to canonical names, and canonical names to Hugging Face's.

Canonical names are open_clip's for the visual tower inside a CLIP, `visual.conv1.weight`, with the query, key
and value projections fused in `attn.in_proj_weight`. Known layouts: open_clip's tower, inside a CLIP or alone,
and Hugging Face's `CLIPModel`, `CLIPVisionModel` and `CLIPVisionModelWithProjection`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mergeability.errors import UserError
from mergeability.weights import towers
from mergeability.weights.towers import CONSTANTS, Tower, find_towers, unwrapped

# Towers of a CLIP to read: the visual tower, or both.
VISUAL, BOTH = "visual", "both"

# Only attention in blocks is fused; open_clip's attention pooler has separate projections by design.
_SPLIT_ATTENTION = re.compile(
    r"^(visual\.transformer\.resblocks\.\d+\.attn\.)[qkv]_proj(_weight|\.weight|\.bias)$"
)

# Hugging Face's names (with its misspelt "layrnorm") → open_clip's.
_TOWER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_BLOCK_MODULES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PROJECTION = "visual_projection.weight"
_TOWER_MODULES = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
_CANONICAL_BLOCK = re.compile(r"^visual\.transformer\.resblocks\.(\d+)\.")
_TEXT_TOWER = re.compile(r"^(text_model\..+|text_projection(\..+)?|logit_scale)$")
# The text tower of a Hugging Face CLIP → open_clip's, outside the blocks.
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_TEXT_PROJECTION = "text_projection.weight"
_TEXT_POSITION_IDS = "text_model.embeddings.position_ids"
_LISTED = 5
_DAMAGED = "The file is damaged or of another architecture: save it again."


@dataclass(frozen=True)
class Source:
    """Describe which tensors of a file are combined into one tensor with a canonical name.

    Attributes:
        names: tensors of a file, to be concatenated along the first axis.
        transposed: whether the result is then transposed.
    """

    names: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Reading:
    """Describe which tensors are read from a file.

    Attributes:
        sources: canonical name → its source.
        left_out: kind of unread tensors (`text tower`, `head`, `other`) → names in the file.
    """

    sources: dict[str, Source]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_names(names: Iterable[str], which: str = VISUAL) -> Reading:
    """Map canonical names to their sources in a file, and list the tensors left out.

    The visual tower of a CLIP is found by its names, under open_clip's or Hugging Face's, whatever prefix they have.
    Split queries, keys and values become one tensor. The names of other networks are unchanged, and so are
    those of a network that contains a CLIP's tower.

    Args:
        names: the file's.
        which: "visual" for the visual tower of a CLIP, "both" for its text tower as well.

    Raises:
        UserError: there are several visual towers; or one of queries, keys and values, or their bias, is
            missing or given twice; or a tower under Hugging Face's names lacks a name or has an unknown one.
    """
    names = list(names)
    files = unwrapped(names)
    found = find_towers(files)
    if not found:
        return Reading({name: Source((name,)) for name in names})
    outside = _outside(files, found[0])
    others = tuple(tower.prefix for tower in found[1:])
    if towers.has_blocks(
        name for name in outside.get("other", ()) if not others or not name.startswith(others)
    ):
        return Reading({name: Source((name,)) for name in names})
    _check_one_tower([tower.prefix for tower in found])
    sources = _visual_sources(files, found[0])
    if which == BOTH:
        sources |= _text_sources(outside.pop("text tower", []), found[0])
    return Reading(
        {name: _in_file(source, files) for name, source in sources.items()},
        {kind: [files[name] for name in group] for kind, group in outside.items()},
    )


def canonical_sources(names: Iterable[str]) -> dict[str, Source]:
    """Map canonical names to their source tensors in a file, as `read_names` selects them by default.

    Raises:
        UserError: as `read_names`.
    """
    return read_names(names).sources


def _in_file(source: Source, files: Mapping[str, str]) -> Source:
    return Source(tuple(files[name] for name in source.names), source.transposed)


def _visual_sources(names: Iterable[str], tower: Tower) -> dict[str, Source]:
    if tower.hugging_face:
        return _hugging_face_sources(tower, set(names))
    inside = [name for name in names if name.startswith(tower.prefix)]
    return _fuse_attention({f"visual.{name.removeprefix(tower.prefix)}": name for name in inside})


def _text_sources(names: Sequence[str], tower: Tower) -> dict[str, Source]:
    if not names:
        return {}
    if tower.hugging_face:
        return _hugging_face_text(tower.wrapper, set(names))
    return {name.removeprefix(tower.wrapper): Source((name,)) for name in names}


def _outside(names: Iterable[str], tower: Tower) -> dict[str, list[str]]:
    """Group the tensors outside the visual tower; the projection of Hugging Face's tower is outside its prefix."""
    names = set(names)
    if not tower.hugging_face:
        used = {name for name in names if name.startswith(tower.prefix)}
    else:
        own = tuple(tower.prefix + start for start in _TOWER_MODULES)
        used = {name for name in names if name.startswith(own) or name == tower.wrapper + _PROJECTION}
        if tower.prefix.endswith("vision_model."):
            used |= {name for name in names if name.startswith(tower.prefix)}
    return dict(towers.leftovers(names, used, tower))


def layout_name(names: Iterable[str]) -> str:
    """Describe the names that a weights file uses for the tensors of the visual tower."""
    files = unwrapped(names)
    for tower in find_towers(files):
        if tower.hugging_face:
            projection = "with" if tower.wrapper + _PROJECTION in files else "without"
            return f"Hugging Face's CLIP names under '{tower.prefix}', {projection} a projection"
        return f"open_clip's names under '{_prefix_in_file(tower.prefix, files)}'"
    return "open_clip's names under ''"


def _prefix_in_file(prefix: str, files: Mapping[str, str]) -> str:
    """Return a prefix including the wrapper modules of the file."""
    short, name = next((short, name) for short, name in files.items() if short.startswith(prefix))
    return name.removesuffix(short.removeprefix(prefix))


def left_over(names: Iterable[str]) -> list[str]:
    """Return the sorted names that belong neither to a tower of a CLIP nor to its constants."""
    left_out = read_names(names).left_out
    return sorted(name for kind, group in left_out.items() if kind != "text tower" for name in group)


def hugging_face_sources(names: Iterable[str]) -> dict[str, Source]:
    """Map the canonical name of each parameter of a CLIP's visual transformer to its tensors in a Hugging Face file.

    The tensors are named as in `CLIPVisionModelWithProjection` (without a projection: as in `CLIPVisionModel` before
    transformers 5), and all names except that of the projection begin with `vision_model.`. `canonical_sources` reads
    such files.

    Raises:
        UserError: a name is missing or unknown.
    """
    given = set(names)
    sources = _tower_sources(Tower("", "vision_model.", hugging_face=True), _blocks(given, _CANONICAL_BLOCK))
    if "visual.proj" not in given:
        del sources["visual.proj"]
    if faults := _faults(sorted(sources.keys() - given), sorted(given - sources.keys())):
        raise UserError(
            "Expected the visual transformer of a CLIP, the only encoder that can be exported under Hugging "
            "Face's names, "
            f"but {faults}. Remove export=hf."
        )
    return sources


def clip_sources(names: Iterable[str]) -> dict[str, Source]:
    """Map open_clip's name of each parameter of a full CLIP model (both towers) to its tensors in a file.

    open_clip's names may lie inside a `model.` or `module.`; Hugging Face's are those of `CLIPModel`. Nothing is left
    out but Hugging Face's integer position indices and the constants in OpenAI's files, so a model that is not a CLIP
    has missing or unknown names.

    Raises:
        UserError: there are several visual towers, or a tower under Hugging Face's names is incomplete.
    """
    files = unwrapped(names)
    given, found = set(files), find_towers(files)
    _check_one_tower([tower.prefix for tower in found])
    if found and found[0].hugging_face:
        (tower,) = found
        text = {name for name in given if _TEXT_TOWER.match(name.removeprefix(tower.wrapper))}
        sources = _hugging_face_sources(tower, given) | _hugging_face_text(tower.wrapper, text)
        others = _outside(files, tower)
        # These are reported as unexpected names.
        sources |= {name: Source((name,)) for kind in ("head", "other") for name in others.get(kind, ())}
    else:
        wrapper = found[0].wrapper if found and found[0].prefix.endswith("visual.") else ""
        inside = {name.removeprefix(wrapper): name for name in given if name.startswith(wrapper)}
        outside = {name: name for name in given if not name.startswith(wrapper)}
        kept = {name: own for name, own in (inside | outside).items() if name not in CONSTANTS}
        sources = _fuse_attention(kept)
    return {name: _in_file(source, files) for name, source in sources.items()}


def _hugging_face_text(wrapper: str, names: set[str]) -> dict[str, Source]:
    layer = re.compile(re.escape(wrapper) + r"text_model\.encoder\.layers\.(\d+)\.")
    sources = {canonical: Source((wrapper + name,)) for name, canonical in _TEXT.items()}
    sources["text_projection"] = Source((wrapper + _TEXT_PROJECTION,), transposed=True)
    for block in range(_blocks(names, layer)):
        stem = f"{wrapper}text_model.encoder.layers.{block}."
        sources |= _block_sources(stem, f"transformer.resblocks.{block}.")
    expected = {name for source in sources.values() for name in source.names}
    if faults := _faults(sorted(expected - names), sorted(names - expected - {wrapper + _TEXT_POSITION_IDS})):
        raise UserError(
            f"Expected a CLIP with both a text tower and a visual tower, but {faults}. Give the whole "
            "CLIPModel, because its "
            "text tower creates the heads of tasks."
        )
    return sources


def canonical_shape(shapes: Sequence[tuple[int, ...]], transposed: bool) -> tuple[int, ...]:
    """Return the shape of a canonical tensor that is assembled from tensors of given shapes.

    (n₁, …), (n₂, …), … → (n₁ + n₂ + …, …), with the two axes exchanged if `transposed`.

    Args:
        shapes: one for each of a source's names, in their order.
        transposed: the source's.

    Raises:
        UserError: the shapes differ beyond the first axis, or what is to be transposed is not a matrix.
    """
    first = shapes[0]
    if len(shapes) > 1:
        # Scalars have no first axis to concatenate along.
        if not all(shape and shape[1:] == first[1:] for shape in shapes):
            raise UserError(
                "Expected tensors that can be concatenated along the first axis, "
                f"but their shapes are {listed([str(shape) for shape in shapes])}. {_DAMAGED}"
            )
        first = (sum(shape[0] for shape in shapes), *first[1:])
    if not transposed:
        return first
    if len(first) != 2:
        raise UserError(
            f"Expected a matrix, because the tensor has to be transposed, got a tensor of shape {first}. {_DAMAGED}"
        )
    return first[::-1]


def _check_one_tower(prefixes: list[str]) -> None:
    if len(prefixes) > 1:
        found = ", ".join(f"'{prefix}'" for prefix in prefixes)
        raise UserError(
            f"Expected one visual tower, but this file contains {len(prefixes)}, under the prefixes {found}. "
            "Save the intended one in a separate file."
        )


def _fuse_attention(tower: dict[str, str]) -> dict[str, Source]:
    """Fuse queries, keys and values if a block stores them separately; keep all other tensors."""
    attentions = {match[1] for name in tower if (match := _SPLIT_ATTENTION.match(name))}
    sources = {name: Source((tower[name],)) for name in tower if not _SPLIT_ATTENTION.match(name)}
    missing, repeated = [], []
    for attention in sorted(attentions):
        for fused, suffixes in (("in_proj_weight", ("_weight", ".weight")), ("in_proj_bias", (".bias",))):
            apart = [[f"{attention}{part}_proj{suffix}" for part in "qkv"] for suffix in suffixes]
            given = [group for group in ([attention + fused], *apart) if any(name in tower for name in group)]
            if len(given) > 1:
                repeated.append(attention + fused)
            elif not given:
                missing.append(attention + fused)
            elif absent := [name for name in given[0] if name not in tower]:
                missing += absent
            else:
                sources[attention + fused] = Source(tuple(tower[name] for name in given[0]))
    if repeated:
        raise UserError(
            "Expected either fused or split projections of queries, keys and values, but both are present for "
            f"{listed(repeated)}. Remove one of the two."
        )
    if missing:
        raise UserError(
            "Expected queries, keys and values, with their biases, for each attention layer that stores them as "
            f"separate tensors; missing ({len(missing)}): {listed(missing)}. Save the whole state dict again."
        )
    return sources


def _hugging_face_sources(tower: Tower, names: set[str]) -> dict[str, Source]:
    layer = re.compile(re.escape(tower.prefix) + r"encoder\.layers\.(\d+)\.")
    sources = _tower_sources(tower, _blocks(names, layer))
    if tower.wrapper + _PROJECTION not in names:
        del sources["visual.proj"]
    _check_complete(tower, {name for source in sources.values() for name in source.names}, names)
    return sources


def _blocks(names: set[str], block: re.Pattern[str]) -> int:
    """Count the blocks by their distinct indices, at least one.

    The largest index is not used, so that gaps appear as missing names, and huge indices are harmless.
    """
    return max(len({match[1] for name in names if (match := block.match(name))}), 1)


def _tower_sources(tower: Tower, blocks: int) -> dict[str, Source]:
    """Map all canonical names of a tower with a number of blocks, including the projection."""
    sources = {f"visual.{canonical}": Source((tower.prefix + name,)) for name, canonical in _TOWER.items()}
    for block in range(blocks):
        layer = f"{tower.prefix}encoder.layers.{block}."
        sources |= _block_sources(layer, f"visual.transformer.resblocks.{block}.")
    sources["visual.proj"] = Source((tower.wrapper + _PROJECTION,), transposed=True)
    return sources


def _block_sources(layer: str, canonical: str) -> dict[str, Source]:
    """Map the canonical names of one block, in either tower, to Hugging Face's."""
    sources = {}
    for kind in ("weight", "bias"):
        apart = tuple(f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv")
        sources[f"{canonical}attn.in_proj_{kind}"] = Source(apart)
        for module, renamed in _BLOCK_MODULES.items():
            sources[f"{canonical}{renamed}.{kind}"] = Source((f"{layer}{module}.{kind}",))
    return sources


def _check_complete(tower: Tower, expected: set[str], names: set[str]) -> None:
    """Raise an error if names of a tower are missing or unknown."""
    outside = {name for group in _outside(names, tower).values() for name in group}
    ignored = outside | {name for name in names if towers.is_constant(name, tower)}
    if faults := _faults(sorted(expected - names), sorted(names - expected - ignored)):
        raise UserError(
            "Expected exactly the tensors of the visual tower of a CLIP, under Hugging Face's names; differences:"
            f" {faults}. Save the state dict of the plain CLIP model again."
        )


def _faults(missing: Sequence[str], unknown: Sequence[str]) -> str:
    """Describe missing and unknown names; empty if there are none."""
    kinds = ((missing, "missing"), (unknown, "not understood"))
    return "; ".join(f"{kind} ({len(names)}): {listed(names)}" for names, kind in kinds if names)


def listed(items: Sequence[str]) -> str:
    """List a few items and count the others."""
    shown = ", ".join(items[:_LISTED])
    return f"{shown} and {len(items) - _LISTED} more" if len(items) > _LISTED else shown
