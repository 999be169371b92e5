"""Check that a model is supported: it must be a plain CLIP, and published weights must match the configuration.

open_clip is imported where it is used, since that takes seconds (see `mergeability.models.clip`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from mergeability.checks import is_count
from mergeability.errors import UserError

# Further arguments of `open_clip.CLIP` define other models: a logit bias, for example, belongs to SigLIP.
_PARTS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale")
_REQUIRED = _PARTS[:3]
# Settings that, if enabled, use a tower of another library, other tokens or other outputs.
_FOREIGN = {
    "vision_cfg": ("timm_model_name", "output_tokens"),
    "text_cfg": ("hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "embed_cls"),
}
# How `ClipModel.resize` works.
_RESIZING = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"}
_SUFFIX = "-quickgelu"


def check_plain(model: str, architecture: Any) -> None:
    """Check that an architecture is a plain CLIP: open_clip's two towers and its tokenizer.

    Args:
        model: the model's name, for the message.
        architecture: the name of an open_clip model, or its configuration.

    Raises:
        UserError: open_clip lacks the architecture; parts are missing or unknown; a tower is from another library; the
            text tower has another tokenizer; images are not square.
    """
    import open_clip

    if isinstance(architecture, str):
        if architecture not in open_clip.list_models():
            raise UserError(
                f"Model {model!r}: open_clip has no architecture {architecture!r}. "
                "`open_clip.list_models()` lists the available ones."
            )
        configuration, called = open_clip.get_model_config(architecture), architecture
    else:
        configuration, called = architecture, "model.architecture"
    if wrong := _not_plain(configuration):
        raise UserError(
            f"Model {model!r}: expected a plain CLIP with open_clip's towers and tokenizer, but {called} "
            f"{' and '.join(wrong)}. Choose an architecture such as ViT-B-16-quickgelu, or give embed_dim, vision_cfg "
            "and text_cfg of a plain CLIP."
        )


def _not_plain(configuration: Any) -> list[str]:
    """Return the differences of a configuration from a plain CLIP, as parts of a sentence."""
    import open_clip

    if not isinstance(configuration, Mapping):
        return [f"is {configuration!r}"]
    missing = [name for name in _REQUIRED if not configuration.get(name)]
    sets = [name for name in configuration if name not in _PARTS]
    towers = {"vision_cfg": open_clip.CLIPVisionCfg, "text_cfg": open_clip.CLIPTextCfg}
    for part, kind in towers.items():
        tower = configuration.get(part) or {}
        if not isinstance(tower, Mapping):
            return [f"has {part}={tower!r}"]
        known = {field.name for field in fields(kind)}
        sets += [
            f"{part}.{name}"
            for name, value in tower.items()
            if name not in known or (name in _FOREIGN[part] and value)
        ]
    found = [f"lacks {', '.join(missing)}"] if missing else []
    found += [f"sets {', '.join(map(str, sets))}"] if sets else []
    size = (configuration.get("vision_cfg") or {}).get("image_size", 224)
    return found + ([] if side(size) else [f"has vision_cfg.image_size={size}, not one number"])


def side(size: Any) -> int | None:
    """Return the side length of square images from a number or a pair of equal numbers; None otherwise."""
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if is_count(size, least=1) else None


def check_tag(model: str, architecture: str, tag: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that published weights were trained with the configured activation and preprocessing.

    Args:
        model: the model's name, for the message.
        architecture: the name of an open_clip model.
        tag: open_clip's tag of the published weights.
        mean: mean of each colour channel for normalisation.
        std: standard deviation of each colour channel.

    Raises:
        UserError: something differs; the message contains expected and configured values, and the remedy.
    """
    differing = _differences(architecture, tag, mean, std)
    if not differing:
        return
    told = ", ".join(f"{name}={expected} (got {got})" for name, (expected, got) in differing.items())
    raise UserError(
        f"Model {model!r}: the weights {tag!r} of {architecture} were trained with {told}. "
        f"{_advice(architecture, tag, differing, mean, std)}"
    )


def _differences(
    architecture: str, tag: str, mean: Sequence[float], std: Sequence[float]
) -> dict[str, tuple[Any, Any]]:
    """Return expected and configured values of the settings that differ."""
    import open_clip
    import open_clip.pretrained

    published = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    configuration: Mapping[str, Any] = open_clip.get_model_config(architecture) or {}
    got: dict[str, Any] = {
        "quick_gelu": bool(configuration.get("quick_gelu")),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "image_size": configuration["vision_cfg"].get("image_size", 224),
        **_RESIZING,
    }
    expected = {
        **got,
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        **{name: published[name] for name in ("interpolation", "resize_mode", "mode") if published.get(name)},
        **{name: _per_colour(published[name]) for name in ("mean", "std") if published.get(name) is not None},
        "quick_gelu": bool(published.get("quick_gelu")),
        "image_size": _side(published.get("size") or got["image_size"]),
    }
    return {name: (expected[name], got[name]) for name in got if expected[name] != got[name]}


def _per_colour(values: float | Sequence[float]) -> list[float]:
    return [float(values)] * 3 if isinstance(values, int | float) else [float(value) for value in values]


def _side(size: Any) -> Any:
    """Return the side of a square given as one number, or as (height, width) or (channels, height, width)."""
    if isinstance(size, int):
        return size
    height, width = size[-2:]
    return height if height == width else (height, width)


def _advice(
    architecture: str,
    tag: str,
    differing: Mapping[str, tuple[Any, Any]],
    mean: Sequence[float],
    std: Sequence[float],
) -> str:
    import open_clip

    settings = [
        f"model.{name}={differing[name][0]}".replace(" ", "") for name in ("mean", "std") if name in differing
    ]
    if "quick_gelu" in differing:
        base = architecture.removesuffix(_SUFFIX)
        other = base if architecture != base else f"{base}{_SUFFIX}"
        has_tag = tag in open_clip.list_pretrained_tags_by_model(other)
        settings.append(f"model.architecture={other}" if has_tag else "")
    if not {*differing} - {"mean", "std", "quick_gelu"} and all(settings):
        return f"Set {' '.join(settings)}."
    # The resizing of images and their size are determined by the architecture and this package.
    fitting = [
        one
        for one in open_clip.list_pretrained_tags_by_model(architecture)
        if not _differences(architecture, one, mean, std)
    ]
    if fitting:
        return f"These cannot be set: choose model.pretrained among {', '.join(fitting)}."
    return "These cannot all be set: choose another model.architecture or another model.pretrained."
