"""Locate the towers of a CLIP model in a weights file, whatever prefixes the tensor names have.

A tower is identified by a combination of names that only such a tower has; the text before these names is its prefix.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Modules that wrap another one and have no tensors: torch.compile, DataParallel, FSDP, activation checkpointing.
_WRAPPER_MODULES = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# A visual tower of open_clip saved alone (`clip.visual.state_dict()`).
_BARE_VISUAL = re.compile(
    r"^(class_embedding|positional_embedding|proj|conv1\.weight|ln_(pre|post)\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..+)$"
)
# The same for a CLIP's ResNet: poolers of other ResNets do not have these names.
_RESNET_POOLER = "attnpool.positional_embedding"
_BARE_RESNET = re.compile(r"^((conv|bn)[123]|layer[1-4]\.\d+|attnpool)\..+$")
# Modules of open_clip's visual towers; language models with a vision part called `visual` have others.
_OPEN_CLIP_VISUAL = re.compile(
    r"^(class_embedding|positional_embedding|proj|query|patch_dropout|((conv|bn|ln)[123]?|ln_\w+|attn_?pool\w*"
    r"|transformer|layer[1-4]|trunk|head)\..+)$"
)
_TEXT_TOWER = re.compile(r"^(text_model\..+|text_projection(\..+)?|logit_scale|logit_bias)$")
_OPEN_CLIP_TEXT = re.compile(
    r"^(token_embedding\.weight|positional_embedding|ln_final\.(weight|bias)|text_projection(\..+)?|cls_emb"
    r"|logit_scale|logit_bias|transformer\.resblocks\.\d+\..+|text(_decoder)?\..+)$"
)
_POSITION_IDS = "embeddings.position_ids"
# Entries of OpenAI's files that are not weights, and a mask.
CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
# Top-level modules that are specific to one task.
_HEAD = re.compile(
    r"^(classifier|classification_head|heads?|head_dist|fc|score|qa_outputs|pre_classifier|logits|linear_head"
    r"|linear_classifier|cls)(\d*|_\w+)?\."
)
_NUMBERED_BLOCK = re.compile(r"(^|\.)(layers?|blocks?|h|resblocks|block|stages)\.\d+\.")


@dataclass(frozen=True)
class Tower:
    """Hold the location of a visual tower in a file.

    Attributes:
        wrapper: prefix of the whole CLIP, under which a text tower may also be.
        prefix: prefix of the visual tower's own tensors.
        hugging_face: whether its names are Hugging Face's; open_clip's otherwise.
    """

    wrapper: str
    prefix: str
    hugging_face: bool


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Remove the prefixes of wrapper modules from names, and map the results to the names in the file.

    `_orig_mod.visual.module.proj` becomes `visual.proj`. If two names would become equal, all names are kept.
    """
    names = list(names)
    short = {
        ".".join(part for part in name.split(".") if part not in _WRAPPER_MODULES) or name: name
        for name in names
    }
    return short if len(short) == len(names) else {name: name for name in names}


def find_towers(names: Iterable[str]) -> list[Tower]:
    """Find the visual towers of CLIPs, sorted by the length of their prefixes."""
    given = set(names)
    found = {tower.prefix: tower for tower in [*_open_clip_towers(given), *_hugging_face_towers(given)]}
    return sorted(found.values(), key=lambda one: (one.hugging_face, len(one.prefix), one.prefix))


def is_text(name: str, tower: Tower) -> bool:
    """Return whether a tensor outside the visual tower belongs to the text tower of the CLIP model."""
    patterns = (_TEXT_TOWER,) if tower.hugging_face else (_OPEN_CLIP_TEXT, _TEXT_TOWER)
    # Files from training scripts may store the text tower outside the visual tower's wrapper.
    names = (name.removeprefix(tower.wrapper), name)
    return any(bool(pattern.match(own)) for own in names for pattern in patterns)


def is_constant(name: str, tower: Tower) -> bool:
    """Return whether a tensor is a constant, such as a mask or position indices, instead of a weight."""
    own = name.removeprefix(tower.wrapper)
    return own in CONSTANTS or own.endswith((_POSITION_IDS, ".attn_mask"))


def is_head(name: str) -> bool:
    """Return whether a tensor belongs to a top-level module that usually is a classification head."""
    return bool(_HEAD.match(name))


def has_blocks(names: Iterable[str]) -> bool:
    """Return whether names contain numbered blocks, a sign that the tensors belong to the backbone of a network."""
    return any(_NUMBERED_BLOCK.search(name) for name in names)


def _open_clip_towers(names: set[str]) -> list[Tower]:
    prefixes: dict[str, str] = {}
    for name in names:
        for match in re.finditer(r"(?:^|\.)visual\.", name):
            prefix = name[: match.end()]
            if prefix not in prefixes and _OPEN_CLIP_VISUAL.match(name[match.end() :]):
                prefixes[prefix] = prefix.removesuffix("visual.")
    if not prefixes:
        prefixes = _bare_towers(names)
    return [Tower(wrapper, prefix, hugging_face=False) for prefix, wrapper in prefixes.items()]


def _bare_towers(names: set[str]) -> dict[str, str]:
    """Find towers that are not called `visual`: prefix → wrapper."""
    found = {}
    for anchor, second, pattern in (
        ("class_embedding", "conv1.weight", _BARE_VISUAL),
        (_RESNET_POOLER, "conv1.weight", _BARE_RESNET),
    ):
        for name in names:
            prefix = name.removesuffix(anchor)
            if prefix == name or (prefix and not prefix.endswith(".")):
                continue
            inside = [one.removeprefix(prefix) for one in names if one.startswith(prefix)]
            # A tower without a prefix is identified by the anchor alone.
            if all(map(pattern.match, inside)) and (not prefix or prefix + second in names):
                found[prefix] = prefix
    return found


def _hugging_face_towers(names: set[str]) -> list[Tower]:
    """Find CLIP towers by their misspelt norm ("pre_layrnorm") and an embedding of the class or of patches.

    Text towers have neither; BLIP and SigLIP have such embeddings, but no norm before the first block.
    """
    norms = ("pre_layrnorm.weight", "pre_layrnorm.bias")
    embeddings = ("embeddings.class_embedding", "embeddings.patch_embedding.weight")
    prefixes = {name.removesuffix(norm) for norm in norms for name in names if name.endswith(norm)}
    return [
        # `CLIPVisionModel` of recent transformers has no `vision_model.`.
        Tower(prefix.removesuffix("vision_model."), prefix, hugging_face=True)
        for prefix in prefixes
        if (not prefix or prefix.endswith(".")) and any(prefix + one in names for one in embeddings)
    ]


def leftovers(names: Iterable[str], used: Iterable[str], tower: Tower) -> Mapping[str, list[str]]:
    """Group the tensors outside the visual tower into `text tower`, `head` and `other`; leave out constants."""
    used = set(used)
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if name in used or is_constant(name, tower):
            continue
        own = name.removeprefix(tower.wrapper)
        kind = "text tower" if is_text(name, tower) else "head" if is_head(own) or is_head(name) else "other"
        groups.setdefault(kind, []).append(name)
    return groups
