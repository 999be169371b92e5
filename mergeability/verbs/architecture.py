"""Find the model in `conf/model` that matches a checkpoint, by the tensor shapes of the checkpoint's visual tower."""

from collections.abc import Mapping
from typing import Any

from mergeability.errors import UserError, did_you_mean
from mergeability.members import files
from mergeability.models.clip import ClipModel
from mergeability.models.text import TextModel
from mergeability.verbs.defaults import composed, made
from mergeability.weights.checkpoints import Checkpoint

_PATCHES, _POSITIONS, _OUTPUT = "visual.conv1.weight", "visual.positional_embedding", "visual.proj"


def model_called(name: str) -> ClipModel:
    """Create the `ClipModel` that the file `conf/model/<name>.yaml` defines.

    Args:
        name: a member of `conf/model`, such as "vit_b16".

    Raises:
        UserError: there is no such model, or the model reads text.

    Examples:
        >>> from mergeability.verbs.architecture import model_called
        >>> model_called("clip_mini").image_size
        32
    """
    known = files("model")
    if name not in known:
        raise UserError(f"There is no model {name!r}.{did_you_mean(name, known)} Models: {', '.join(known)}.")
    options = composed("model", name)
    if not _reads_images(options):
        raise UserError(
            f"The model {name!r} reads text, but predictions from model files require a model that reads images. "
            f"Image models: {', '.join(image_models())}."
        )
    return made(options)


def image_models() -> list[str]:
    """List the models in `conf/model` that read images.

    Examples:
        >>> from mergeability.verbs.architecture import image_models
        >>> {"vit_b16", "rn50"} <= set(image_models()), "minilm" in image_models()
        (True, False)
    """
    return [name for name in files("model") if _reads_images(composed("model", name))]


def _reads_images(options: Mapping[str, Any]) -> bool:
    return str(options["_target_"]).rpartition(".")[2] != TextModel.__name__


def recognised(base: Checkpoint) -> ClipModel:
    """Find the first model in `conf/model` whose visual tower has the same tensor shapes as a checkpoint.

    Args:
        base: the base model.

    Raises:
        UserError: there is none.

    Examples:
        >>> from mergeability.verbs.architecture import model_called, recognised
        >>> from mergeability.weights.in_memory import open_in_memory
        >>> state = model_called("clip_mini").build().state_dict()
        >>> recognised(open_in_memory(state)).name
        'clip_mini'
    """
    own = _of_checkpoint(base)
    names = image_models()
    for name in names:
        model = model_called(name)
        if own is not None and _of_configuration(model.configuration) == own:
            return model
    raise UserError(
        f"{base.origin} does not have the tensor shapes of any model in conf/model ({', '.join(names)})."
        " Specify its architecture with --model on the command line, or with model= in Python."
    )


def _of_checkpoint(base: Checkpoint) -> dict[str, Any] | None:
    """Return the sizes of a visual tower; None of another network."""
    shapes = base.shapes
    blocks = {name.split(".")[3] for name in shapes if name.startswith("visual.transformer.resblocks.")}
    if blocks and {_PATCHES, _POSITIONS, _OUTPUT} <= shapes.keys():
        width, _, patch, _ = shapes[_PATCHES]
        # Subtract the position of the class token.
        side = round((shapes[_POSITIONS][0] - 1) ** 0.5) * patch
        return {
            "width": width,
            "patch": patch,
            "side": side,
            "layers": len(blocks),
            "out": shapes[_OUTPUT][1],
        }
    stages = [
        {name.split(".")[2] for name in shapes if name.startswith(f"visual.layer{stage}.")}
        for stage in (1, 2, 3, 4)
    ]
    if all(stages) and "visual.attnpool.c_proj.weight" in shapes:
        width = shapes["visual.layer1.0.conv1.weight"][0]
        out = shapes["visual.attnpool.c_proj.weight"][0]
        return {"width": width, "layers": [len(one) for one in stages], "out": out}
    return None


def _of_configuration(configuration: Mapping[str, Any]) -> dict[str, Any]:
    vision, out = configuration["vision_cfg"], configuration["embed_dim"]
    layers, width = vision.get("layers", 12), vision.get("width", 768)
    if isinstance(layers, list | tuple):
        return {"width": width, "layers": list(layers), "out": out}
    side = vision.get("image_size", 224)
    side = side if isinstance(side, int) else side[0]
    return {"width": width, "patch": vision.get("patch_size", 16), "side": side, "layers": layers, "out": out}
