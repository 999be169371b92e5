"""Frozen classification heads: embeddings of sentences that contain the class names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from mergeability.errors import UserError


@torch.no_grad()
def zero_shot_head(
    clip: Any,
    tokenize: Callable[[Sequence[str]], Int64[Tensor, "N context"]],
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Float[Tensor, "classes dimension"]:
    """Build the frozen linear head that classifies normalised features.

    Row c is exp(logit_scale) · normalise(mean over templates t of normalise(text(t.format(c)))). With the
    features normalised too, logits = features @ head.T are scaled cosines.

    Args:
        clip: an `open_clip.CLIP`; not imported here, since the import takes seconds and metrics do not need it.
        tokenize: sentences → tokens.
        class_names: class names in label order, one per row.
        templates: prompts with one `{}` for the class name.

    Returns:
        The head, classes × d; every row has length exp(logit_scale).

    Raises:
        UserError: there is no class name or no template.

    Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, 3.1.4.

    Examples:
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.models import zero_shot_head
        >>> model = tiny_clip()
        >>> head = zero_shot_head(model.build(), model.tokenize, ["cat", "dog"], ["a photo of a {}", "a {}"])
        >>> head.shape, head.norm(dim=1).round(decimals=2)
        (torch.Size([2, 16]), tensor([14.2900, 14.2900]))
    """
    device = clip.logit_scale.device
    prototypes = class_prototypes(
        lambda sentences: clip.encode_text(tokenize(sentences).to(device)), class_names, templates
    )
    return clip.logit_scale.exp() * prototypes


@torch.no_grad()
def class_prototypes(
    encode: Callable[[Sequence[str]], Float[Tensor, "N dimension"]],
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Float[Tensor, "classes dimension"]:
    """Embed each class: row c is normalise(mean over templates t of normalise(encode(t.format(c)))).

    Args:
        encode: sentences → embeddings.
        class_names: class names in label order, one per row.
        templates: prompts with one `{}` for the class name.

    Returns:
        Unit vectors, classes × d.

    Raises:
        UserError: there is no class name or no template.

    Examples:
        >>> import torch
        >>> from mergeability.models import class_prototypes
        >>> lengths = lambda sentences: torch.tensor([[float(len(text)), 3.0] for text in sentences])
        >>> class_prototypes(lengths, ["cat", "bird"], ["{}", "a {}"]).shape
        torch.Size([2, 2])
    """
    if not class_names or not templates:
        raise UserError(
            f"Expected at least one class name and one template for a zero-shot head, got {len(class_names)} "
            f"class names and {len(templates)} templates."
        )
    sentences = [template.format(name) for name in class_names for template in templates]
    embeddings = normalize(encode(sentences), dim=-1)
    means = embeddings.unflatten(0, (len(class_names), len(templates))).mean(dim=1)
    return normalize(means, dim=-1)


def classify(
    features: Float[Tensor, "N dimension"], head: Float[Tensor, "classes dimension"]
) -> Float[Tensor, "N classes"]:
    """Return the logits of unnormalised features."""
    return normalize(features, dim=-1) @ head.T
