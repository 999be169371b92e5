"""The scales published by Marczak et al. 2025 (arXiv 2502.04959) for isotropic merging."""

import re

from mergeability.task_vectors.vectors import TaskVectors

# (width, patch size, number of blocks) of the visual tower → its name.
_TOWERS = {(768, 32, 12): "ViT-B-32", (768, 16, 12): "ViT-B-16", (1024, 14, 24): "ViT-L-14"}
# Name → number of models → α.
ISOTROPIC_ALPHAS = {
    "ViT-B-32": {8: 1.0, 14: 1.0, 20: 0.9},
    "ViT-B-16": {8: 1.4, 14: 1.2, 20: 1.0},
    "ViT-L-14": {8: 1.5, 14: 1.3, 20: 1.0},
}
_BLOCK = re.compile(r"^visual\.transformer\.resblocks\.(\d+)\.")


def isotropic_alpha(task_vectors: TaskVectors) -> tuple[float, bool]:
    """Look up the published scale for this architecture and number of models.

    Returns:
        The scale and True; 1 and False if none is published.
    """
    published = ISOTROPIC_ALPHAS.get(tower_name(task_vectors) or "", {})
    count = len(task_vectors.tasks)
    return published.get(count, 1.0), count in published


def tower_name(task_vectors: TaskVectors) -> str | None:
    """Return the name of a CLIP visual tower, identified by the shapes of its tensors; None for other architectures."""
    shapes = task_vectors.base_checkpoint.shapes
    patches = shapes.get("visual.conv1.weight", ())
    if len(patches) != 4:
        return None
    blocks = {match[1] for name in shapes if (match := _BLOCK.match(name))}
    return _TOWERS.get((patches[0], patches[2], len(blocks)))
