"""Read the weights of both towers of a CLIP, with strict checks of names, shapes and activation."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mergeability.errors import UserError
from mergeability.files import read_json
from mergeability.weights.checkpoints import assembled
from mergeability.weights.hub import find_weights, read_tensors
from mergeability.weights.names import clip_sources, listed
from mergeability.weights.torch_file import SUFFIXES as TORCH_SUFFIXES

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def clip_weights(clip: nn.Module, source: str, model: str, quick_gelu: bool) -> dict[str, Tensor]:
    """Read the weights of both towers of a CLIP, with the names and dtypes of the given architecture.

    Args:
        clip: the architecture; it is not changed.
        source: a file, or a folder with the weights and perhaps Hugging Face's `config.json`.
        model: its name, for messages.
        quick_gelu: whether the architecture's activation is QuickGELU.

    Returns:
        Name → tensor.

    Raises:
        UserError: there is no such file, names are missing or left over, shapes differ, or a `config.json` beside the
            weights names another activation.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability import checkpoints
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.weights.whole_clip import clip_weights
        >>> clip = tiny_clip().build()
        >>> with TemporaryDirectory() as folder:
        ...     path = checkpoints.save(f"{folder}/clip.safetensors", clip.state_dict())
        ...     weights = clip_weights(clip, str(path), "tiny", quick_gelu=False)
        >>> set(weights) == set(clip.state_dict())
        True
    """
    path = find_weights(source)
    _check_activation(path.parent / "config.json", model, quick_gelu)
    tensors, own = read_tensors(path), clip.state_dict()
    try:
        given = {name: assembled(tensors, one) for name, one in clip_sources(tensors).items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    check_same(own, given, str(path), model)
    return {name: value.to(own[name].dtype) for name, value in given.items()}


def check_same(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    owner: str,
    model: str,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Check that tensors have the names and shapes of an architecture, and are finite.

    Args:
        own: the tensors of the architecture.
        given: the tensors to check.
        owner: owner of the tensors, for messages.
        model: the architecture's name, for messages.
        optional: names that may be missing.

    Raises:
        UserError: tensors are missing, unknown, of another shape, or contain NaN or Inf; the message lists them.

    Examples:
        >>> import torch
        >>> from mergeability.weights.whole_clip import check_same
        >>> own = {"weight": torch.zeros(2), "steps": torch.tensor(0)}
        >>> check_same(own, {"weight": torch.ones(2)}, "my file", "tiny", optional=frozenset({"steps"}))
        >>> check_same(own, own, "my file", "tiny") is None
        True
    """
    faults = {
        "missing": sorted(own.keys() - given.keys() - optional),
        "left over": sorted(given.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & given.keys())
            if own[name].shape != given[name].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(
            f"{kind} ({len(names)}): {listed(names)}" for kind, names in faults.items() if names
        )
        raise UserError(f"{owner} does not fit model={model}: {found}. Set model= to its architecture.")
    broken = [
        name for name, value in given.items() if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise UserError(
            f"{owner} contains NaN or Inf in {listed(sorted(broken))}. Download or train it again."
        )


def _check_activation(config: Path, model: str, quick_gelu: bool) -> None:
    """Compare the activation that Hugging Face's configuration names with the architecture's.

    Weights do not show the activation: with the wrong one everything loads, but accuracies are a few points too low.
    """
    described = read_json(config, cure="Download it again.")
    if not isinstance(described, dict) or "clip" not in str(described.get("model_type", "")):
        return
    # The default of transformers.
    towers = [one for one in ("vision_config", "text_config") if isinstance(described.get(one), dict)]
    parts = [described[one] for one in towers] or [described]
    for part in parts:
        activation = part.get("hidden_act", "quick_gelu")
        if (activation == "quick_gelu") != quick_gelu:
            raise UserError(
                f"{config} specifies hidden_act={activation}, but model={model} uses "
                f"{'quick_gelu' if quick_gelu else 'gelu'}: choose an architecture "
                f"{'without' if quick_gelu else 'with'} '-quickgelu' in its name (model.architecture=…)."
            )
