"""Convert encoders to transformers' format: tensor names, `config.json` and `preprocessor_config.json`.

A folder with these two files and the renamed weights in `model.safetensors` is what
`transformers.CLIPVisionModelWithProjection.from_pretrained` and `CLIPImageProcessor.from_pretrained` take.
Nothing here needs transformers.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mergeability.errors import UserError
from mergeability.weights.names import hugging_face_sources

# Settings of open_clip's visual tower that have a counterpart, and those that do not affect its output.
_EXPRESSED = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"}
_WITHOUT_EFFECT = {
    "patch_dropout",  # used only in training
    "final_ln_after_pool",  # no effect if one token is used
    "pos_embed_type",  # only initialises the embedding, which is among the weights
    "output_tokens",
    "attn_pooler_queries",
    "attn_pooler_heads",
}
# All other settings, with the only values that transformers supports.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pool_type": ("tok",),
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "timm_model_name": (None,),
}
_DEFAULT_HEAD_WIDTH, _DEFAULT_MLP_RATIO, _DEFAULT_EPSILON = 64, 4.0, 1e-5
_BICUBIC = 3
_INSTEAD = "Remove export=hf to save a file that open_clip can read."


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Change the tensor names of a CLIP's visual transformer to the names used by `CLIPVisionModelWithProjection`.

    `visual.conv1.weight` → `vision_model.embeddings.patch_embedding.weight` and so on; queries, keys and values
    are split, and the projection is transposed. Values do not change, and `Checkpoint.open` reads the result back bit
    by bit. transformers 4 and 5 both load these names into `CLIPVisionModelWithProjection`.

    Args:
        tensors: canonical name → tensor, for exactly the visual tower.

    Returns:
        Views of the tensors where possible.

    Raises:
        UserError: these are not the tensors of a CLIP's visual transformer.

    Examples:
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.weights.hugging_face import renamed
        >>> state = {f"visual.{name}": tensor for name, tensor in tiny_clip().build().visual.state_dict().items()}
        >>> sorted(renamed(state))[:2]
        ['vision_model.embeddings.class_embedding', 'vision_model.embeddings.patch_embedding.weight']
    """
    found: dict[str, Tensor] = {}
    for name, source in hugging_face_sources(tensors).items():
        tensor, parts = tensors[name], len(source.names)
        in_parts = parts == 1 or (tensor.ndim > 0 and len(tensor) % parts == 0)
        if not in_parts or (source.transposed and tensor.ndim != 2):
            raise UserError(
                f"Expected '{name}' to be {'a matrix' if source.transposed else f'{parts} parts of one size'}, got "
                f"the shape {tuple(tensor.shape)}. {_INSTEAD}"
            )
        tensor = tensor.T if source.transposed else tensor
        found |= zip(source.names, tensor.chunk(parts) if parts > 1 else (tensor,), strict=True)
    return found


def vision_config(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the `config.json` of an encoder.

    Args:
        configuration: open_clip's of the model: `embed_dim`, `vision_cfg`, `quick_gelu`.
        tensors: the encoder's, under canonical names; they determine the dtype, and whether there is a projection.

    Returns:
        A JSON-able record. Weights of several dtypes are loaded in the smallest common dtype.

    Raises:
        UserError: transformers does not support the model, or the tensors do not fit the configuration.

    Examples:
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.weights.hugging_face import vision_config
        >>> state = {f"visual.{name}": tensor for name, tensor in tiny_clip().build().visual.state_dict().items()}
        >>> found = vision_config(tiny_clip().configuration, state)
        >>> found["hidden_size"], found["patch_size"], found["projection_dim"]
        (16, 16, 16)
    """
    vision = _expressible(configuration)
    width, mlp_ratio = int(vision["width"]), vision.get("mlp_ratio", _DEFAULT_MLP_RATIO)
    heads = width // int(vision.get("head_width", _DEFAULT_HEAD_WIDTH))
    if not heads or width % heads:
        raise UserError(
            f"Expected a width divisible by head_width, as transformers requires, got a width of {width} and a "
            f"head_width of {vision.get('head_width', _DEFAULT_HEAD_WIDTH)}. {_INSTEAD}"
        )
    config = {
        "architectures": ["CLIPVisionModelWithProjection" if "visual.proj" in tensors else "CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": int(width * mlp_ratio),
        "num_hidden_layers": int(vision["layers"]),
        "num_attention_heads": heads,
        "num_channels": 3,
        "image_size": _side("image_size", vision["image_size"]),
        "patch_size": _side("patch_size", vision["patch_size"]),
        "projection_dim": int(configuration["embed_dim"]),
        "hidden_act": "quick_gelu" if configuration.get("quick_gelu") else "gelu",
        "layer_norm_eps": (vision.get("norm_kwargs") or {}).get("eps", _DEFAULT_EPSILON),
        "attention_dropout": 0.0,
        # transformers 5 calls it dtype, but still reads this name.
        "torch_dtype": str(_dtype(tensors)).removeprefix("torch."),
    }
    _check_shapes(config, tensors)
    return config


def preprocessor_config(image_size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return a `preprocessor_config.json` with which `CLIPImageProcessor` preprocesses images like `ClipModel`.

    Shorter side resized to `image_size` (bicubic), centre cropped, scaled to [0, 1], normalised.

    Args:
        image_size: side of the square images the encoder takes, in pixels.
        mean: mean of the three channels, in [0, 1].
        std: standard deviation of the three channels.

    Returns:
        A JSON-able record.

    Examples:
        >>> from mergeability.weights.hugging_face import preprocessor_config
        >>> preprocessor_config(32, mean=[0.5] * 3, std=[0.5] * 3)["size"]
        {'shortest_edge': 32}
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [float(value) for value in mean],
        "image_std": [float(value) for value in std],
    }


def _expressible(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the visual tower, checked to be those of a plain CLIP."""
    vision = configuration.get("vision_cfg")
    if not isinstance(vision, Mapping) or "embed_dim" not in configuration:
        raise UserError(
            "Expected open_clip's configuration of a model, with embed_dim and vision_cfg, got "
            f"{', '.join(map(str, configuration)) or 'nothing'}. {_INSTEAD}"
        )
    for name, value in vision.items():
        # Options of timm models are ignored if no timm model is named.
        known = name in _EXPRESSED | _WITHOUT_EFFECT or name.startswith("timm_")
        if value not in _PLAIN[name] if name in _PLAIN else not known:
            raise UserError(f"transformers' CLIP cannot express {name}={value!r} of this encoder. {_INSTEAD}")
    if isinstance(vision.get("layers"), list | tuple):
        raise UserError(
            f"CLIP in transformers does not support ResNets, but layers={vision['layers']!r} describes a ResNet. "
            f"{_INSTEAD}"
        )
    if unknown := set(vision.get("norm_kwargs") or {}) - {"eps"}:
        raise UserError(
            f"transformers' CLIP cannot express {', '.join(sorted(unknown))} of norm_kwargs. {_INSTEAD}"
        )
    # Defaults of open_clip.
    return {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, **vision}


def _side(name: str, value: Any) -> int:
    sides = {int(side) for side in value} if isinstance(value, list | tuple) else {int(value)}
    if len(sides) != 1:
        raise UserError(
            f"transformers' CLIP supports only square images and patches, but {name} is {tuple(value)}. {_INSTEAD}"
        )
    return sides.pop()


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the smallest dtype that holds all the weights."""
    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors.values()])


def _check_shapes(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the shapes of the weights with the configuration; shapes do not depend on the number of heads."""
    width, patch, layers = config["hidden_size"], config["patch_size"], config["num_hidden_layers"]
    first_linear = "vision_model.encoder.layers.{}.mlp.fc1.weight"
    expected = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (
            (config["image_size"] // patch) ** 2 + 1,
            width,
        ),
        first_linear.format(layers - 1): (config["intermediate_size"], width),
        # Check that there are no further blocks.
        first_linear.format(layers): None,
        "visual_projection.weight": (config["projection_dim"], width) if "visual.proj" in tensors else None,
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed(tensors).items()}
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise UserError(
                f"The configuration requires '{name}' to be {shape or 'absent'}, but in the encoder it is"
                f" {shapes.get(name) or 'absent'}. Give the configuration of this encoder."
            )
