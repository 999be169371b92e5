"""The configuration of a CLIP model: its architecture, weights, image preprocessing and tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mergeability.checks import Count, PathPart, Positive, check_path_part
from mergeability.data.image_cache import prepared, remarks
from mergeability.data.inputs import Images, Inputs, Samples, Split
from mergeability.data.tasks import Task
from mergeability.errors import UserError, one_line
from mergeability.models.published import check_plain, check_tag, side
from mergeability.models.zero_shot import zero_shot_head
from mergeability.store import Store
from mergeability.weights.checkpoints import PREFIX
from mergeability.weights.whole_clip import SUFFIXES, clip_weights

# open_clip and torchvision, which import timm, transformers and torch.compile's compiler, are imported where they are
# used: measuring and merging checkpoints does not need them, and starts three times as fast.
if TYPE_CHECKING:
    import open_clip

# The published normalisation of OpenAI's CLIP, which every model derived from it keeps.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipModel:
    """Describe a CLIP: its architecture, its pretrained weights, and the settings to fine-tune it with.

    Attributes:
        name: name of the model, usable as a folder name.
        architecture: the name of an open_clip model, or its configuration (`embed_dim`, `vision_cfg`, `text_cfg`).
        learning_rate: default learning rate for fine-tuning, above 0.
        batch_size: default batch size for fine-tuning, at least 1.
        pretrained: an open_clip tag, downloaded on first use; or a file or folder with the weights of both towers,
            under open_clip's or Hugging Face's names; None for random weights from a seed.
        mean: mean of each colour channel, for pixels in [0, 1].
        std: standard deviation of each colour channel.
        base_command: the command that trains the base model; None if it is downloaded.

    Raises:
        UserError: the architecture is unknown or not a plain CLIP; or the tag is unknown, given for a custom
            configuration, or was trained with another activation or preprocessing than configured.

    Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020.

    Examples:
        >>> import torch
        >>> from mergeability.models import ClipModel
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
        >>> text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        >>> configuration = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
        >>> model = ClipModel("tiny", configuration, learning_rate=1e-3, batch_size=8)
        >>> images = torch.zeros(4, 3, 48, 64, dtype=torch.uint8)
        >>> model.preprocess(images).shape
        torch.Size([4, 3, 32, 32])
        >>> model.build(seed=0).visual(model.preprocess(images)).shape
        torch.Size([4, 16])
    """

    name: PathPart
    architecture: str | Mapping[str, Any]
    learning_rate: Positive
    batch_size: Count
    pretrained: str | None = None
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    base_command: str | None = None

    def __post_init__(self) -> None:
        check_path_part("name of a model", self.name)
        check_plain(self.name, self.architecture)
        if isinstance(self.architecture, str):
            self._check_tag(self.architecture)
        elif self.pretrained is not None and not self.is_from_file:
            raise UserError(
                f"Model {self.name!r}: open_clip has no weights {self.pretrained!r} for a custom "
                "architecture. Set model.pretrained=null, or set it to a file with the weights of both towers."
            )

    @property
    def is_from_file(self) -> bool:
        """Whether the pretrained weights are a file or folder instead of a tag of open_clip."""
        text = str(self.pretrained or "")
        tags = () if not isinstance(self.architecture, str) else _tags(self.architecture)
        if not text or text in tags:
            return False
        return "/" in text or text.endswith(SUFFIXES) or Path(text).exists()

    @property
    def configuration(self) -> dict[str, Any]:
        """Return open_clip's configuration of the architecture."""
        if isinstance(self.architecture, str):
            import open_clip

            # `check_plain` has verified that open_clip knows the architecture.
            return cast("dict[str, Any]", open_clip.get_model_config(self.architecture))
        return dict(self.architecture)

    @property
    def settings(self) -> dict[str, Any]:
        """Return a JSON-able record of everything that determines the features of images."""
        return {"model": self.configuration, "mean": list(self.mean), "std": list(self.std)}

    @property
    def tensor_prefix(self) -> str:
        """Return the prefix of the visual encoder's tensors in the files of fine-tuned models."""
        return PREFIX

    @property
    def remarks(self) -> list[str]:
        """Return no messages about unused tensors, because both towers of the pretrained weights are used."""
        return []

    @property
    def image_size(self) -> int:
        """Return the side length, in pixels, of the square input images."""
        size = self.configuration["vision_cfg"].get("image_size", 224)
        # Validated on construction: a number or a pair of equal numbers.
        return side(size) or int(size)

    @property
    def context_length(self) -> int:
        """Return the context length of the text tower."""
        return int(self.configuration["text_cfg"].get("context_length", 77))

    def build(self, seed: int = 0) -> "open_clip.CLIP":
        """Build the model in evaluation mode, with pretrained weights or with random weights fixed by the seed.

        The global random state is not changed. Under `torch.device("meta")` no memory is allocated.
        """
        if self.is_from_file:
            clip = self.architecture_only()
            clip.load_state_dict(clip_weights(clip, str(self.pretrained), str(self.name), self._quick_gelu))
            return clip
        if self.pretrained is not None:
            import open_clip

            loaded = open_clip.create_model(str(self.architecture), pretrained=self.pretrained)
            return cast("open_clip.CLIP", loaded.eval())
        return self.architecture_only(seed)

    def architecture_only(self, seed: int = 0) -> "open_clip.CLIP":
        """Build the model in evaluation mode with random weights fixed by the seed, ignoring `pretrained`."""
        return self._built(self.configuration, seed)

    def encoder_only(self) -> nn.Module:
        """Build the image encoder alone, because the text tower is slow to initialise.

        The weights equal the weights of the image encoder in `architecture_only(seed=0)`.
        """
        # open_clip makes both, the image encoder first.
        tiny = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
        return self._built({**self.configuration, "text_cfg": tiny}, seed=0).visual

    def _built(self, configuration: Mapping[str, Any], seed: int) -> "open_clip.CLIP":
        import open_clip

        # open_clip initialises from the global generator, so it is seeded inside a fork of it.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            try:
                return open_clip.CLIP(**configuration).eval()
            except (
                TypeError,
                ValueError,
                LookupError,
                ArithmeticError,
                RuntimeError,
                AssertionError,
            ) as error:
                raise UserError(
                    f"open_clip cannot build model {self.name!r} from model.architecture "
                    f"({type(error).__name__}: {one_line(error)[:200]}). Correct its sizes."
                ) from error

    def encoder_of(self, base: Any) -> nn.Module:
        """Return the visual encoder of a CLIP."""
        return base.visual

    def head(self, base: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Compute a zero-shot head, classes × features, with the text tower of the base model."""
        return zero_shot_head(base, self.tokenize, class_names, templates)

    def samples(self, task: Task, split: Split, store: Store) -> Images:
        """Read a split's images, resized to the model's square input size; see `image_cache.prepared`."""
        return prepared(task, split, self.resize, self.image_size, store)

    def task_remarks(self, task: Task) -> list[str]:
        """Return messages about images that are left out or modified in the splits read so far."""
        return remarks(task)

    def inputs(self, samples: Samples) -> Inputs:
        """Preprocess images, and return them with their labels."""
        return Inputs({"images": self.preprocess(samples.rows)}, samples.labels)

    def preprocess(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 size size"]:
        """Resize the shorter side (bicubic, anti-aliased), crop the centre, scale to [0, 1] and normalise."""
        return self.normalise(self.resize(images))

    def resize(self, images: UInt8[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 size size"]:
        """Resize the shorter side (bicubic, anti-aliased) and crop the centre: the cached part of preprocessing."""
        size = self.image_size
        if images.shape[-2:] == (size, size):
            return images
        from torchvision.transforms.functional import InterpolationMode, center_crop, resize

        resized = resize(images, [size], InterpolationMode.BICUBIC, antialias=True)
        return center_crop(resized, [size, size])

    def normalise(self, images: UInt8[Tensor, "N 3 size size"]) -> Float[Tensor, "N 3 size size"]:
        """Scale images to [0, 1] and normalise them by each channel's mean and standard deviation."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return (images.float() / 255 - mean) / std

    def tokenize(self, texts: Sequence[str]) -> Int64[Tensor, "N context"]:
        """Tokenize sentences, and truncate or zero-pad the tokens to the context length."""
        return _tokenizer(self.context_length)(list(texts))

    @property
    def _quick_gelu(self) -> bool:
        return bool(self.configuration.get("quick_gelu"))

    def _check_tag(self, architecture: str) -> None:
        if self.pretrained is None or self.is_from_file:
            return
        tags = _tags(architecture)
        if self.pretrained not in tags:
            raise UserError(
                f"Model {self.name!r}: expected pretrained weights among {', '.join(tags) or 'none'}, or a file or "
                f"folder, got {self.pretrained!r}. Set model.pretrained=null to build from a seed."
            )
        check_tag(self.name, architecture, self.pretrained, self.mean, self.std)


@cache
def _tags(architecture: str) -> tuple[str, ...]:
    import open_clip

    return tuple(open_clip.list_pretrained_tags_by_model(architecture))


@cache
def _tokenizer(context_length: int) -> "open_clip.SimpleTokenizer":
    import open_clip

    # The vocabulary is part of the open_clip package, so no network is needed; cached, because reading takes a second.
    return open_clip.SimpleTokenizer(context_length=context_length)
