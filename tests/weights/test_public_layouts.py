"""Towers as they are published: from transformers and from open_clip, one model whichever way it comes.

The patches are those of ViT-B/32, ViT-B/16 and ViT-L/14, with narrow towers of two blocks; in the slow tier the widths are
theirs too, with one block instead of twelve or twenty-four, and ViT-B/16 is whole.
"""

import dataclasses
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
import transformers

from mergeability.merging import Average, Ties
from mergeability.metrics.measure import measure
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import hub
from mergeability.weights.checkpoints import Checkpoint
from mergeability.weights.encoder_state import encoder_state

# Name → open_clip's architecture, width, patch, blocks, heads, embedding.
SIZES = {
    "narrow_b32": ("ViT-B-32-quickgelu", 64, 32, 2, 2, 32),
    "narrow_b16": ("ViT-B-16-quickgelu", 64, 16, 2, 2, 32),
    "narrow_l14": ("ViT-L-14-quickgelu", 96, 14, 2, 4, 48),
    "vit_b32": ("ViT-B-32-quickgelu", 768, 32, 12, 12, 512),
    "vit_b16": ("ViT-B-16-quickgelu", 768, 16, 12, 12, 512),
    "vit_l14": ("ViT-L-14-quickgelu", 1024, 14, 24, 16, 768),
}
CASES = [(size, 2) for size in SIZES if size.startswith("narrow")]
CASES += [pytest.param((size, 1), marks=pytest.mark.slow) for size in SIZES if not size.startswith("narrow")]
# One of them whole: all would write tens of gigabytes.
CASES += [pytest.param(("vit_b16", SIZES["vit_b16"][3]), marks=pytest.mark.slow)]


def vision_config(size, blocks):
    _, width, patch, _, heads, embedding = SIZES[size]
    return transformers.CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks, num_attention_heads=heads,
        patch_size=patch, image_size=224, projection_dim=embedding, hidden_act="quick_gelu",
    )  # fmt: skip


def random_tower(size, blocks):
    """A tower of transformers' own making, no parameter of which is zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = transformers.CLIPVisionModelWithProjection(vision_config(size, blocks)).eval()
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
    return tower


def fine_tuned(tower, seed, projection=True):
    """Move every weight a little, but for the projection where it is not trained."""
    other = transformers.CLIPVisionModelWithProjection(tower.config).eval()
    other.load_state_dict(tower.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if projection or "visual_projection" not in name:
                parameter += 0.002 * torch.randn(parameter.shape, generator=generator)
    return other


def open_clip_tower(size, blocks):
    architecture, width, _, _, heads, embedding = SIZES[size]
    settings = open_clip.get_model_config(architecture) | {"embed_dim": embedding}
    vision = settings["vision_cfg"] | {"layers": blocks, "width": width, "head_width": width // heads}
    text = settings["text_cfg"] | {"layers": 1, "width": 64, "heads": 1, "vocab_size": 10}
    with torch.random.fork_rng(devices=[]):
        return open_clip.CLIP(**settings | {"vision_cfg": vision, "text_cfg": text}).visual.eval()


# How the two of them publish one tower: a writer (tower, open_clip's tower, folder) → file.
def transformers_with_projection(theirs, _ours, folder):
    theirs.save_pretrained(folder)
    return folder / "model.safetensors"


def transformers_without_prefix(theirs, _ours, folder):
    """The naming generation that has no `vision_model.`, as transformers 5 saves a `CLIPVisionModel`."""
    tower = transformers.CLIPVisionModel(theirs.config)
    inner = {
        name.removeprefix("vision_model."): value for name, value in theirs.vision_model.state_dict().items()
    }
    tower.load_state_dict(inner)
    tower.save_pretrained(folder)
    return folder / "model.safetensors"


def transformers_older(theirs, _ours, folder):
    """The generation with `vision_model.` and integer positions, without a projection."""
    state = {
        "vision_model." + name.removeprefix("vision_model."): value
        for name, value in theirs.vision_model.state_dict().items()
    }
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    folder.mkdir()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def open_clip_alone(_theirs, ours, folder):
    folder.mkdir()
    safetensors.torch.save_file(ours.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def open_clip_in_a_wrapper(_theirs, ours, folder):
    """A PyTorch file with `model.visual.` and leftovers of a text tower, as the published reference saves it."""
    state = {f"model.visual.{name}": value for name, value in ours.state_dict().items()}
    leftovers = {"model.positional_embedding": torch.ones(7, 3), "model.logit_scale": torch.tensor(4.6)}
    folder.mkdir()
    torch.save(state | leftovers, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


WITH_PROJECTION = (transformers_with_projection, open_clip_alone, open_clip_in_a_wrapper)
WITHOUT_PROJECTION = (transformers_without_prefix, transformers_older)


@dataclasses.dataclass
class Published:
    """The base and two fine-tuned models, each saved by both libraries."""

    paths: dict[str, dict[str, Path]]
    towers: dict[str, torch.nn.Module]
    encoder: torch.nn.Module
    store: Store


@pytest.fixture(params=CASES, ids=str)
def published(request, tmp_path):
    size, blocks = request.param
    base = random_tower(size, blocks)
    towers = {
        "base": base,
        "a": fine_tuned(base, 1, projection=False),
        "b": fine_tuned(base, 2, projection=False),
    }
    paths = {}
    for name, theirs in towers.items():
        first = transformers_with_projection(theirs, None, tmp_path / f"{name}-saved")
        ours = open_clip_tower(size, blocks)
        ours.load_state_dict(encoder_state(ours, Checkpoint.open(first).state_dict(), name))
        paths[name] = {
            writer.__name__: writer(theirs, ours, tmp_path / f"{name}-{writer.__name__}")
            for writer in (*WITH_PROJECTION, *WITHOUT_PROJECTION)
        }
    return Published(paths, towers, open_clip_tower(size, blocks), Store(tmp_path / "store"))


def test_logits_metrics_and_merges_do_not_depend_on_who_saved_the_model(published):
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    head = torch.nn.functional.normalize(
        torch.randn(5, published.encoder.proj.shape[1], generator=torch.Generator().manual_seed(2))
    )
    base = hub.open_checkpoint(published.paths["base"]["open_clip_alone"], published.store)
    for name, theirs in published.towers.items():
        for layout, path in published.paths[name].items():
            checkpoint = hub.open_checkpoint(path, published.store).completed(base)
            assert checkpoint.has_lent_projection == (layout in {w.__name__ for w in WITHOUT_PROJECTION})
            state = encoder_state(published.encoder, checkpoint.state_dict(), layout)
            published.encoder.load_state_dict(state)
            with torch.inference_mode():
                expected = torch.nn.functional.normalize(theirs(pixel_values=images).image_embeds) @ head.T
                found = torch.nn.functional.normalize(published.encoder(images)) @ head.T
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def task_vectors(of_base, of_a, of_b):
        layouts = {"base": of_base, "a": of_a, "b": of_b}
        opened = {
            name: hub.open_checkpoint(published.paths[name][layout.__name__], published.store)
            for name, layout in layouts.items()
        }
        return TaskVectors.load({"a": opened["a"], "b": opened["b"]}, opened["base"])

    reference = task_vectors(open_clip_alone, open_clip_alone, open_clip_alone)
    expected, merges = measure(reference), [method(reference) for method in (Average(), Ties())]
    mixtures = [
        (transformers_with_projection, transformers_with_projection, open_clip_in_a_wrapper),
        (transformers_with_projection, transformers_without_prefix, transformers_older),
        (open_clip_in_a_wrapper, transformers_older, open_clip_alone),
    ]
    for mixture in mixtures:
        vectors = task_vectors(*mixture)
        table = measure(vectors)
        assert table.to_dict() == expected.to_dict(), mixture
        for method, merge in zip((Average(), Ties()), merges, strict=True):
            found = method(vectors)
            assert found.keys() == merge.keys()
            assert all(torch.equal(found[name], value) for name, value in merge.items()), mixture
