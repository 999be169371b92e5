"""The configuration of a text encoder of the transformers library: its folder, tokenizer and class prototypes."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mergeability.checks import Count, PathPart, Positive, check_path_part
from mergeability.data.inputs import (
    SPLITS,
    Inputs,
    Samples,
    Split,
    Tokens,
)
from mergeability.data.tasks import Task
from mergeability.data.texts.reading import read_texts
from mergeability.errors import UserError, one_line
from mergeability.files import read_object
from mergeability.models.zero_shot import class_prototypes
from mergeability.store import Store
from mergeability.weights import checkpoints
from mergeability.weights.safetensors_file import TensorFile

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
# The parts of a file of weights that mean pooling does not use: a second pooling, heads, and numbers of positions.
_NOT_USED = ("pooler.", "cls.", "classifier.", "lm_head.")
_CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Entries of config.json that do not determine the features.
_DESCRIPTIONS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "gradient_checkpointing",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
    }
)
_EXTRA = "pip install 'mergeability[text]'"


@dataclass(frozen=True)
class TextModel:
    """Describe a text encoder: its files, how it reads texts, and the settings to fine-tune it with.

    The features of a text are the mean of the last layer's outputs over its tokens. The head of a task contains
    class prototypes: unit embeddings of sentences with the class names, multiplied by `scale`.

    Attributes:
        name: name of the model, usable as a folder name.
        pretrained: a folder with `config.json`, `tokenizer.json` and `model.safetensors` of a BERT of transformers, or
            the name of an installed Python package that contains these files.
        learning_rate: default learning rate for fine-tuning, above 0.
        batch_size: default batch size for fine-tuning, at least 1.
        context_length: tokens per text: longer texts are cut, shorter ones padded.
        scale: length of the rows of a head, the inverse of the temperature of the softmax, above 0.
        sha256: expected SHA-256 of `model.safetensors`; not checked when None.
        base_command: the command that trains the base model; None if it is only copied.

    Raises:
        UserError: there is no such folder or package, a file is missing, or the network is not a BERT.

    Paper: Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084; Wang et al. 2020, MiniLM, arXiv 2002.10957.

    Examples:
        >>> from mergeability.examples import tiny_text_model
        >>> model = tiny_text_model()
        >>> tokens = model.tokenize(["a red square", "a blue circle"])
        >>> tokens.shape, model.build()(tokens).shape
        (torch.Size([2, 8]), torch.Size([2, 16]))
    """

    name: PathPart
    pretrained: str
    learning_rate: Positive
    batch_size: Count
    context_length: Count = 32
    scale: Positive = 20.0
    sha256: str | None = None
    base_command: str | None = None

    def __post_init__(self) -> None:
        check_path_part("name of a model", self.name)
        if not isinstance(self.pretrained, str):
            raise UserError(
                f"Model {self.name!r}: expected model.pretrained to be a folder or an installed Python package, got "
                f"{self.pretrained!r}. The network and its tokenizer are read from it."
            )
        kind = self._config.get("model_type")
        if kind != "bert":
            raise UserError(
                f"Model {self.name!r}: expected a BERT, got model_type {kind!r} in {self.folder / CONFIG}. Other text "
                "encoders are not supported."
            )
        longest = self._config.get("max_position_embeddings", 512)
        if self.context_length > longest:
            raise UserError(
                f"Model {self.name!r}: expected model.context_length to be at most {longest}, the number of "
                f"positions of the network, got {self.context_length}."
            )

    @property
    def folder(self) -> Path:
        """The folder of the pretrained files.

        Raises:
            UserError: there is no such folder, no such package, or a file is missing in it.
        """
        place = (
            Path(self.pretrained).expanduser() if self.is_from_file else _folder_of_package(self.pretrained)
        )
        missing = [name for name in (CONFIG, TOKENIZER, WEIGHTS) if not (place / name).is_file()]
        if missing:
            raise UserError(
                f"Model {self.name!r}: expected {CONFIG}, {TOKENIZER} and {WEIGHTS} in {place}, but "
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
            )
        return place

    @property
    def is_from_file(self) -> bool:
        """Whether `pretrained` is a folder instead of a package."""
        return "/" in self.pretrained or Path(self.pretrained).is_dir()

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the network's configuration: dropout is set to 0, and purely descriptive entries are left out.

        Dropout is not used in training either, so that an interrupted training continues with the same result.
        """
        kept = {name: value for name, value in self._config.items() if name not in _DESCRIPTIONS}
        return {**kept, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    @property
    def settings(self) -> dict[str, Any]:
        """Return a JSON-able record of everything that determines the features of tokens."""
        return {"model": self.configuration, "pooling": "mean", "context_length": self.context_length}

    @property
    def tensor_prefix(self) -> str:
        """Return an empty prefix: `transformers` opens only files with unchanged tensor names."""
        return ""

    @property
    def remarks(self) -> list[str]:
        """Return a message about tensors of the pretrained weights that mean pooling does not use."""
        names = sorted(name for name in _names(self.folder / WEIGHTS) if _is_unused(name))
        if not names:
            return []
        return [f"left out of the base model, because mean pooling does not use them: {', '.join(names)}."]

    def build(self, seed: int = 0) -> nn.Module:
        """Build the encoder in evaluation mode with its pretrained weights.

        Args:
            seed: not used; part of the interface of models.

        Raises:
            UserError: the file of weights has another SHA-256 than expected, or does not fit the configuration.
        """
        path = self.folder / WEIGHTS
        if self.sha256 is not None and (found := checkpoints.file_hash(path)) != self.sha256:
            raise UserError(
                f"Model {self.name!r}: expected {path} to have the SHA-256 {self.sha256}, got {found}. The file is not "
                "the one that the configuration was written for: install the package again, or set model.sha256=null."
            )
        for sentence in self.remarks:
            logger.info("%s: %s", self.name, sentence)
        encoder = self.architecture_only()
        own = encoder.state_dict()
        given = {
            name.removeprefix("bert."): tensor
            for name, tensor in checkpoints.load(path).items()
            if not _is_unused(name) and name.removeprefix("bert.") not in _CONSTANTS
        }
        wrong = sorted(own.keys() ^ given.keys()) or [n for n in own if own[n].shape != given[n].shape]
        if wrong:
            raise UserError(
                f"{path} does not fit {self.folder / CONFIG}: {len(wrong)} tensors differ, such as '{wrong[0]}'. Save "
                "the model again with save_pretrained."
            )
        encoder.load_state_dict(given)
        return encoder.float().eval()

    def architecture_only(self, seed: int = 0) -> nn.Module:
        """Build the encoder in evaluation mode with random weights fixed by the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return mean_pooled_bert(self.configuration).eval()

    def encoder_only(self) -> nn.Module:
        """Build the encoder with random weights; it is the whole base model."""
        return self.architecture_only()

    def encoder_of(self, base: Any) -> nn.Module:
        """Return the base model, which is the encoder."""
        return base

    def head(self, base: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return the frozen head of a task, classes × features: `scale` times the class prototypes of the base."""
        was_training = base.training
        base.eval()
        try:
            return self.scale * class_prototypes(
                lambda sentences: base(self.tokenize(sentences)), class_names, templates
            )
        finally:
            base.train(was_training)

    def samples(self, task: Task, split: Split, store: Store) -> Tokens:
        """Read a split's texts and tokenize them.

        Args:
            task: the task.
            split: the split.
            store: not used, because tokenizing takes milliseconds; part of the interface of models.

        Raises:
            UserError: the task consists of images, the split is empty, or a label has no class name.
        """
        texts = read_texts(task, split)
        return Tokens(self.tokenize(texts.texts), texts.labels)

    def task_remarks(self, task: Task) -> list[str]:
        """Return a message for each split in which texts exceed the context length and are cut."""
        found = []
        for split in SPLITS:
            texts = read_texts(task, split).texts
            cut = sum(bool(one.overflowing) for one in self._encodings(texts))
            if cut:
                found.append(
                    f"{cut} of {len(texts)} texts of the {split} split are truncated after "
                    f"{self.context_length} tokens."
                )
        return found

    def inputs(self, samples: Samples) -> Inputs:
        """Return tokens as the encoder's inputs, with their labels."""
        return Inputs({"tokens": self.preprocess(samples.rows)}, samples.labels)

    def preprocess(self, rows: Int64[Tensor, "N length"]) -> Int64[Tensor, "N length"]:
        """Return tokens unchanged, because the encoder embeds them itself."""
        return rows

    def tokenize(self, texts: Sequence[str]) -> Int64[Tensor, "N context"]:
        """Tokenize texts, and truncate or pad the tokens to the context length."""
        return torch.tensor([one.ids for one in self._encodings(texts)], dtype=torch.int64)

    def _encodings(self, texts: Sequence[str]) -> Sequence["Encoding"]:
        padding = int(self._config.get("pad_token_id", 0))
        return _tokenizer(self.folder / TOKENIZER, self.context_length, padding).encode_batch(list(texts))

    @property
    def _config(self) -> Mapping[str, Any]:
        return read_object(self.folder / CONFIG) or {}


def mean_pooled_bert(configuration: Mapping[str, Any]) -> nn.Module:
    """Build a BERT of the `transformers` library that returns the last layer's mean output over each text's tokens.

    Its tensors have the names of `transformers.BertModel`, without the pooler. `forward(tokens)` takes int64 of shape
    (N, length), where the padding token marks positions without a token.

    Args:
        configuration: fields of `transformers.BertConfig`.

    Raises:
        UserError: transformers is not installed, or rejects the configuration.

    Examples:
        >>> import torch
        >>> from mergeability.models.text import mean_pooled_bert
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        >>> encoder = mean_pooled_bert({"vocab_size": 20, **sizes}).eval()
        >>> encoder(torch.tensor([[5, 6, 0], [5, 6, 7]])).shape
        torch.Size([2, 8])
    """
    try:
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise UserError(f"Text models require the package transformers: {_EXTRA}.") from error

    class MeanPooledBert(BertModel):
        """A BERT whose features are the mean over unmasked tokens."""

        def token_mask(self, tokens: Tensor) -> Tensor:
            """Return a mask of the positions that are not padding; see `mergeability.models.features.place_mask`."""
            return tokens != self.config.pad_token_id

        def forward(self, tokens: Tensor) -> Float[Tensor, "N width"]:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Return one row of features per text."""
            mask = self.token_mask(tokens)
            # Columns that are padding in the whole batch do not change the features, and would take half of the time.
            length = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
            tokens, mask = tokens[:, :length], mask[:, :length]
            outputs = super().forward(input_ids=tokens, attention_mask=mask.long())
            hidden = cast("Tensor", outputs[0])
            weights = mask.to(hidden.dtype).unsqueeze(-1)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    try:
        return MeanPooledBert(BertConfig(**configuration), add_pooling_layer=False)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise UserError(
            f"transformers cannot build the network ({one_line(error)[:200]}). Check the model's {CONFIG}."
        ) from error


def _is_unused(name: str) -> bool:
    return name.removeprefix("bert.").startswith(_NOT_USED)


def _names(path: Path) -> list[str]:
    return list(TensorFile(path).entries)


def _folder_of_package(package: str) -> Path:
    """Find the folder of a model inside an installed package, without importing the package.

    Raises:
        UserError: the package is not installed, or contains no model.
    """
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"Expected model.pretrained to be a folder or an installed Python package, but {package!r} is neither. "
            f"Run: {_EXTRA}"
        )
    place = Path(next(iter(found.submodule_search_locations)))
    inside = sorted(path.parent for path in place.rglob(CONFIG) if (path.parent / WEIGHTS).is_file())
    if not inside:
        raise UserError(f"The package {package!r} in {place} contains no folder with {CONFIG} and {WEIGHTS}.")
    return inside[0]


@cache
def _tokenizer(path: Path, length: int, padding: int) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"Text models require the package tokenizers: {_EXTRA}.") from error
    # tokenizers raises a plain Exception for a file that it cannot read, so its parts are checked first.
    model = (read_object(path) or {}).get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("type"), str) or not model.get("vocab"):
        raise UserError(
            f"Expected {path} to contain a tokenizer of the transformers library with a tokenization model and a "
            "vocabulary. Save the tokenizer again."
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=length)
    token = tokenizer.id_to_token(padding)
    tokenizer.enable_padding(length=length, pad_id=padding, pad_token=token or "[PAD]")
    return tokenizer
