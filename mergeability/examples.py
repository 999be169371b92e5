"""Create tiny models, images and heads for the examples in docstrings.

No module of the package imports this one. Files that models are read from lie in a temporary folder, which is removed
when Python exits.

Examples:
    >>> from mergeability.examples import tiny_task_vectors
    >>> tiny_task_vectors(cars=[1, 0], svhn=[0, 2])["weight"]
    tensor([[1., 0.],
            [0., 2.]])
"""

import atexit
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from mergeability.data.inputs import Images, Inputs
from mergeability.data.rendered.source import Rendered, find_subject
from mergeability.data.tasks import Task
from mergeability.evaluation.evaluator import Evaluator
from mergeability.files import write_text
from mergeability.models.clip import ClipModel
from mergeability.models.text import TextModel, mean_pooled_bert
from mergeability.profiles.profiles import Profiles
from mergeability.profiles.views import Views
from mergeability.random import seeded_generator
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights import checkpoints
from mergeability.weights.checkpoints import Checkpoint

# Every value of the base of `tiny_task_vectors`: task vectors of a few units are short compared with it, as after
# fine-tuning, and base plus change minus base is exact in float32.
_BASE_VALUE = 64.0
_DELTAS: Mapping[str, Sequence | Tensor] = {
    "cars": [[3, 0, 0], [0, 1, 0]],
    "dtd": [[2, 0, 0], [0, 0, 1]],
    "svhn": [[-1, 0, 0], [0, 2, 0]],
}
_SIDE, _HIDDEN, _FEATURES, _CLASSES = 2, 6, 4, 3


def tiny_task_vectors(**deltas: Sequence | Tensor) -> TaskVectors:
    """Create models that differ from their base by exactly the given numbers, in one tensor `weight`.

    Args:
        deltas: task → τ, a nested list of numbers or a tensor, all of one shape; by default 2×3, for three tasks.

    Returns:
        Their task vectors, with a store in memory.

    Examples:
        >>> from mergeability.examples import tiny_task_vectors
        >>> models = tiny_task_vectors()
        >>> models.tasks, models.shapes
        (('cars', 'dtd', 'svhn'), {'weight': (2, 3)})
    """
    changes = {
        task: torch.as_tensor(delta, dtype=torch.float32) for task, delta in (deltas or _DELTAS).items()
    }
    base = torch.full_like(next(iter(changes.values())), _BASE_VALUE)
    return _written({"weight": base}, {task: {"weight": change} for task, change in changes.items()})


def tiny_files() -> tuple[str, dict[str, str]]:
    """Write the models of `tiny_task_vectors` and their base to files, and return the paths.

    Returns:
        Path of the base; name → path of each model.

    Examples:
        >>> from mergeability.examples import tiny_files
        >>> base, models = tiny_files()
        >>> base.endswith("base.safetensors"), list(models)
        (True, ['cars', 'dtd', 'svhn'])
    """
    models = _kept_models()
    return str(models.base_checkpoint.path), {task: str(models.model(task).path) for task in models.tasks}


@cache
def _kept_models() -> TaskVectors:
    return tiny_task_vectors()


def tiny_own_models() -> tuple[str, dict[str, str], dict[str, str]]:
    """Write a tiny CLIP, two randomly changed copies of it, and a folder of twelve unlabelled images for each copy.

    Returns:
        Path of the base; name → path of each model; name → folder of images.

    Examples:
        >>> from mergeability.examples import tiny_own_models
        >>> base, models, images = tiny_own_models()
        >>> list(models), list(images)
        (['greys', 'hues'], ['greys', 'hues'])
    """
    folder = Path(tempfile.mkdtemp(dir=_temporary_folder()))
    base = tiny_clip().build(seed=0).state_dict()
    path = checkpoints.save(folder / "base.safetensors", base)
    models, images = {}, {}
    for task in ("greys", "hues"):
        changed = {
            name: value + 0.02 * _noise("own models", task, name, like=value)
            if name.startswith("visual.")
            else value
            for name, value in base.items()
        }
        models[task] = str(checkpoints.save(folder / f"{task}.safetensors", changed))
        place = folder / "images" / task
        write_tiny_images(place)
        images[task] = str(place / "train")
    return str(path), models, images


def tiny_encoder() -> nn.Module:
    """Create an encoder that maps normalised 2×2 images to 4 features; its linear layers are `hidden` and `output`.

    Examples:
        >>> import torch
        >>> from mergeability.examples import tiny_encoder
        >>> tiny_encoder()(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 4])
    """
    encoder = nn.Sequential()
    encoder.add_module("flatten", nn.Flatten())
    encoder.add_module("hidden", nn.Linear(3 * _SIDE * _SIDE, _HIDDEN))
    encoder.add_module("activation", nn.Tanh())
    encoder.add_module("output", nn.Linear(_HIDDEN, _FEATURES))
    generator = seeded_generator("tiny encoder")
    for parameter in encoder.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / _HIDDEN**0.5
    return encoder.eval()


def tiny_images(task: str = "cars", count: int = 8) -> Images:
    """Create 2×2 images of three classes; each class has a different brightest colour channel.

    Args:
        task: another task, other images.
        count: how many.

    Examples:
        >>> from mergeability.examples import tiny_images
        >>> images = tiny_images(count=4)
        >>> images.images.shape, images.labels
        (torch.Size([4, 3, 2, 2]), tensor([0, 1, 2, 0]))
    """
    labels = torch.arange(count) % _CLASSES
    noise = torch.randint(0, 100, (count, 3, _SIDE, _SIDE), generator=seeded_generator("tiny images", task))
    noise[torch.arange(count), labels] += 100
    return Images(noise.to(torch.uint8), labels)


def tiny_profiles(*tasks: str) -> Profiles:
    """Create imitations of fine-tuned models: random changes of the tiny encoder, with images and heads.

    Args:
        tasks: names of the models; by default `cars`, `dtd` and `svhn`.

    Examples:
        >>> from mergeability.examples import tiny_profiles
        >>> profiles = tiny_profiles()
        >>> profiles.tasks, profiles.gram("activation").shape
        (('cars', 'dtd', 'svhn'), (3, 3))
    """
    tasks = tasks or tuple(_DELTAS)
    encoder = tiny_encoder()
    base = {f"{checkpoints.PREFIX}{name}": tensor for name, tensor in encoder.state_dict().items()}
    changes = {
        task: {name: 0.1 * _noise("tiny change", task, name, like=tensor) for name, tensor in base.items()}
        for task in tasks
    }
    inputs = {task: _inputs(tiny_images(task)) for task in tasks}
    views = Views(
        encoder,
        _heads(tasks),
        inputs,
        layer="hidden",
        unlabelled={task: one.without_labels() for task, one in inputs.items()},
    )
    return Profiles(_written(base, changes), views)


def tiny_evaluator(*tasks: str) -> Evaluator:
    """Create an evaluator for the models of `tiny_profiles`, with eight images per task.

    Args:
        tasks: names of the models; by default `cars`, `dtd` and `svhn`.

    Examples:
        >>> from mergeability.examples import tiny_evaluator
        >>> sorted(tiny_evaluator().tests)
        ['cars', 'dtd', 'svhn']
    """
    tasks = tasks or tuple(_DELTAS)
    images = {task: tiny_images(task) for task in tasks}
    return Evaluator(
        tiny_encoder(), _normalised, {"encoder": "tiny"}, _heads(tasks), images, Store(), validation=images
    )


def tiny_clip(**changes: Any) -> ClipModel:
    """Describe a randomly initialised CLIP for images of 32×32 pixels; each tower has one block of width 16.

    Args:
        changes: other fields of `ClipModel`.

    Examples:
        >>> from mergeability.examples import tiny_clip
        >>> tiny_clip().image_size
        32
    """
    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    fields = {"name": "tiny", "architecture": architecture, "learning_rate": 1e-3, "batch_size": 8}
    return ClipModel(**{**fields, **changes})


@cache
def tiny_text_model() -> TextModel:
    """Describe a BERT with one block of width 16, eight tokens per text, 32 words, and random weights.

    Examples:
        >>> from mergeability.examples import tiny_text_model
        >>> tiny_text_model().tokenize(["a red square"])
        tensor([[ 2,  5,  6, 13,  3,  0,  0,  0]])
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = (
        "a red green blue dark light big small square circle star moon not is are the of in on one two three"
    )
    vocabulary = {word: number for number, word in enumerate([*special, *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    folder = Path(tempfile.mkdtemp(dir=_temporary_folder()))
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "model_type": "bert",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
    }
    write_text(folder / "config.json", json.dumps(configuration))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = mean_pooled_bert(configuration)
    checkpoints.save(folder / "model.safetensors", network.state_dict())
    return TextModel("tiny_text", str(folder), learning_rate=1e-3, batch_size=8, context_length=8)


def tiny_task() -> Task:
    """Return a task of four rendered classes with 12 training, 8 validation and 8 test images of 32×32 pixels.

    Examples:
        >>> from mergeability.examples import tiny_task
        >>> images = tiny_task().source.load("train")
        >>> images.images.shape
        torch.Size([12, 3, 32, 32])
    """
    subject = find_subject("loops")
    template = f"a drawing of {subject.caption}"
    return Task("loops", Rendered("loops", train=12, validation=8, test=8), subject.classes, [template], 1)


def write_tiny_images(folder: str | Path) -> None:
    """Write a folder of images for tasks with `source=folder`: two classes, each with six images per split.

    Args:
        folder: gets one folder per split, `train` and `test`, with one folder per class, `dark` and `light`.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergeability.examples import write_tiny_images
        >>> with TemporaryDirectory() as folder:
        ...     write_tiny_images(folder)
        ...     len(list(Path(folder).rglob("*.png")))
        24
    """
    for split in ("train", "test"):
        for name, grey in {"dark": 50, "light": 200}.items():
            path = Path(folder) / split / name
            path.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (grey + number,) * 3).save(path / f"{number}.png")


def _written(base: Mapping[str, Tensor], changes: Mapping[str, Mapping[str, Tensor]]) -> TaskVectors:
    # Models are read from their files on demand, so the files must exist until the process ends.
    folder = Path(tempfile.mkdtemp(dir=_temporary_folder()))

    def opened(name: str, change: Mapping[str, Tensor]) -> Checkpoint:
        state = {key: value + change[key] if change else value for key, value in base.items()}
        return Checkpoint.open(checkpoints.save(folder / f"{name}.safetensors", state))

    return TaskVectors.load(
        {task: opened(task, change) for task, change in changes.items()}, opened("base", {})
    )


@cache
def _temporary_folder() -> str:
    folder = tempfile.TemporaryDirectory(prefix="mergeability-examples-")
    atexit.register(folder.cleanup)
    return folder.name


def _noise(*parts: str, like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=seeded_generator(*parts))


def _heads(tasks: Sequence[str]) -> dict[str, Tensor]:
    return {task: _noise("tiny head", task, like=torch.empty(_CLASSES, _FEATURES)) for task in tasks}


def _inputs(images: Images) -> Inputs:
    return Inputs({"images": _normalised(images.images)}, images.labels)


def _normalised(images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    return images.float() / 100 - 1
