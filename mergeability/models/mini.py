"""Pretrain the mini CLIP contrastively on rendered images whose captions are as noisy as captions on the web.

The result is meant to relate to rendered tasks as CLIP relates to real ones: general, but imperfect. Captions are made
from an image's attributes, and are as noisy as those of the web: some name only the kind of object, some are wrong,
some add a colour. The images are cleaner than those of the tasks (`CLUTTER` below 1), so a task also brings a
domain shift. Images use a separate random stream, and handwritten digits separate originals.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import open_clip
import torch
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, normalize

from mergeability.data.rendered.canvas import HUES
from mergeability.data.rendered.source import find_subject, render
from mergeability.data.rendered.subjects import Subject
from mergeability.errors import UserError
from mergeability.models.clip import ClipModel
from mergeability.random import seeded_generator

CLUTTER = 0.3
NAMES_KIND_ONLY = 0.15
NAMES_WRONG_CLASS = 0.05
NAMES_COLOUR = 0.3
SENTENCES = ("{}", "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}")

# CLIP's upper limit of the logit scale, for stability.
MOST_LOGIT_SCALE = torch.tensor(100.0).log().item()


@dataclass(frozen=True)
class CaptionedImages:
    """Images and the tokens of their captions, aligned row by row."""

    images: UInt8[Tensor, "N 3 H W"]
    tokens: Int64[Tensor, "N context"]


class Batches:
    """Infinite batches of captioned images of all subjects, reshuffled every epoch; incomplete batches are dropped.

    All images are in memory, so batches are sliced instead of collated image by image.
    """

    def __init__(self, data: CaptionedImages, batch_size: int, seed: int) -> None:
        self._data = data
        self._batch_size = batch_size
        self._generator = seeded_generator("batches", seed)

    def __len__(self) -> int:
        return len(self._data.images) // self._batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._data.images), generator=self._generator)
        for rows in order.split(self._batch_size)[: len(self)]:
            yield self._data.images[rows], self._data.tokens[rows]


class ContrastivePretraining(lightning.LightningModule):
    """Train both towers so that each image lies closer to its own caption than to the other captions of the batch.

    Loss: mean of the cross-entropies of image-to-text and text-to-image, as in `contrastive_loss`. AdamW,
    one cosine from the learning rate to zero after a tenth of the steps of warm-up.
    """

    def __init__(
        self, model: ClipModel, clip: open_clip.CLIP, learning_rate: float, weight_decay: float, steps: int
    ) -> None:
        super().__init__()
        self.model = model
        self.clip = clip
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.steps = steps

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the contrastive loss of a batch of images and tokens."""
        images, tokens = batch
        loss = contrastive_loss(
            self.clip.visual(self.model.preprocess(images)),
            self.clip.encode_text(tokens),
            tokens,
            self.clip.logit_scale.clamp(max=MOST_LOGIT_SCALE).exp(),
        )
        self.log("pretraining/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """Apply weight decay only to matrices, not to gains, biases and the temperature, as in CLIP."""
        parameters = [parameter for parameter in self.clip.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
        # The schedule divides by warm_up · steps - 1, which is 0 for ten steps.
        warm_up = 0.1 if self.steps != 10 else 0.2
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.learning_rate,
            total_steps=self.steps,
            pct_start=warm_up,
            cycle_momentum=False,
            div_factor=100,
            final_div_factor=1e4,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def contrastive_loss(
    image_features: Float[Tensor, "N dimension"],
    text_features: Float[Tensor, "N dimension"],
    tokens: Int64[Tensor, "N context"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return CLIP's symmetric loss, where identical captions in a batch count as equally correct.

    ½ (CE(S, Y) + CE(Sᵀ, Y)), S the scaled cosines and Y[i, j] = 1/n for the n captions j equal to caption i.
    Without repeated captions Y is the identity, and this is CLIP's loss.

    Papers: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision; Yang et
    al. 2022, Unified Contrastive Learning in Image-Text-Label Space.
    """
    logits = scale * normalize(image_features, dim=-1) @ normalize(text_features, dim=-1).T
    same = (tokens[:, None] == tokens[None, :]).all(dim=-1).to(logits.dtype)
    right = same / same.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


def captions(
    subject: Subject, labels: Int64[Tensor, "N"], hues: Int64[Tensor, "N"], generator: Generator
) -> list[str]:
    """Write one noisy caption per image: its class, a wrong class, or only the kind of object; some add a colour."""
    count, classes = len(labels), len(subject.classes)
    chance = torch.rand(count, 2, generator=generator)
    others = (labels + torch.randint(1, classes, (count,), generator=generator)) % classes
    sentences = torch.randint(0, len(SENTENCES), (count,), generator=generator)
    colours = tuple(HUES)
    names = subject.spoken or subject.classes
    written = []
    for row in range(count):
        named = others[row] if chance[row, 0] > 1 - NAMES_WRONG_CLASS else labels[row]
        phrase = subject.caption.format(names[named])
        if chance[row, 0] < NAMES_KIND_ONLY:
            phrase = subject.kind
        if chance[row, 1] < NAMES_COLOUR and not subject.colour_is_class:
            phrase = f"{phrase} in {colours[hues[row]]}"
        written.append(SENTENCES[sentences[row]].format(phrase))
    return written


def captioned_images(
    model: ClipModel, subjects: Sequence[str], images_per_subject: int, seed: int
) -> CaptionedImages:
    """Render and caption the same number of images of every subject."""
    images, tokens = [], []
    for name in subjects:
        drawn, hues = render(name, images_per_subject, "pretraining", seed, clutter=CLUTTER)
        written = captions(find_subject(name), drawn.labels, hues, seeded_generator("captions", name, seed))
        images.append(drawn.images)
        tokens.append(model.tokenize(written))
    return CaptionedImages(torch.cat(images), torch.cat(tokens))


def pretrain(
    model: ClipModel,
    subjects: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    images_per_subject: int = 3000,
    logger: Logger | bool = False,
    callbacks: Sequence[Callback] = (),
    directory: str | Path | None = None,
    accelerator: str = "auto",
) -> open_clip.CLIP:
    """Build a model from the seed and pretrain both its towers on rendered, captioned images.

    Args:
        model: the architecture; must have no pretrained weights.
        subjects: names in `mergeability.data.rendered.SUBJECTS`.
        steps: number of optimiser steps.
        batch_size: image-caption pairs per step.
        learning_rate: largest learning rate.
        weight_decay: weight decay of the matrices.
        seed: seed of the weights, images, captions and batches.
        images_per_subject: number of images to render of each subject.
        logger: a Lightning logger; False for none.
        callbacks: Lightning callbacks, such as a progress bar.
        directory: folder for files written by the callbacks; the working directory when None.
        accelerator: Lightning's accelerator, such as "cpu" or "gpu".

    Returns:
        The pretrained model on the CPU, in evaluation mode.

    Raises:
        UserError: a subject is unknown, there are fewer images than one batch holds, or the model is pretrained.

    Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.models import pretrain
        >>> options = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.1, "seed": 0}
        >>> clip = pretrain(tiny_clip(), ["loops"], images_per_subject=4, accelerator="cpu", **options)
        >>> clip.encode_image(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 16])
    """
    if model.pretrained is not None:
        raise UserError(
            f"Model {model.name!r} already has pretrained weights. Set model.pretrained=null to train from scratch."
        )
    if images_per_subject * len(subjects) < batch_size:
        raise UserError(
            f"Expected enough images to fill a batch of {batch_size}, got {images_per_subject} images for each "
            f"of {len(subjects)} subjects."
        )
    batches = Batches(captioned_images(model, subjects, images_per_subject, seed), batch_size, seed)
    module = ContrastivePretraining(model, model.build(seed).train(), learning_rate, weight_decay, steps)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator=accelerator,
        devices=1,
        gradient_clip_val=1.0,
        logger=logger,
        callbacks=list(callbacks),
        default_root_dir=directory,
        enable_checkpointing=_keeps_checkpoints(callbacks),
        enable_progress_bar=_shows_progress(callbacks),
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=batches)
    return module.clip.cpu().eval()


def _keeps_checkpoints(callbacks: Sequence[Callback]) -> bool:
    return any(isinstance(callback, Checkpoint) for callback in callbacks)


def _shows_progress(callbacks: Sequence[Callback]) -> bool:
    return any(isinstance(callback, ProgressBar) for callback in callbacks)
