"""Zero-shot classification heads: CLIP's text embeddings of class names."""

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
    if not class_names or not templates:
        raise UserError(
            f"Expected at least one class name and one template for a zero-shot head, got {len(class_names)} "
            f"class names and {len(templates)} templates."
        )
    sentences = [template.format(name) for name in class_names for template in templates]
    tokens = tokenize(sentences).to(clip.logit_scale.device)
    embeddings = normalize(clip.encode_text(tokens), dim=-1)
    means = embeddings.unflatten(0, (len(class_names), len(templates))).mean(dim=1)
    return clip.logit_scale.exp() * normalize(means, dim=-1)


def classify(
    features: Float[Tensor, "N dimension"], head: Float[Tensor, "classes dimension"]
) -> Float[Tensor, "N classes"]:
    """Return the logits of unnormalised features."""
    return normalize(features, dim=-1) @ head.T
