"""Describe users' models: CLIP encoders, each with a head and with unlabelled images of one task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torch import Tensor

from mergeability.checks import clean_name, clean_names
from mergeability.errors import UserError
from mergeability.models.clip import ClipModel
from mergeability.models.preprocessing import check_preprocessing
from mergeability.models.zero_shot import zero_shot_head
from mergeability.pipeline.suites import Layout, say_alike
from mergeability.store import Store
from mergeability.task_vectors.vectors import TaskVectors
from mergeability.weights.hub import find_weights, open_checkpoint, read_tensors
from mergeability.weights.whole_clip import clip_weights

if TYPE_CHECKING:
    from open_clip import CLIP

TEMPLATE = "a photo of a {}."
_AS_STORED = Layout()
_PATHS = ("weights", "images", "classes", "head")


@dataclass(frozen=True)
class OwnModel:
    """Hold one fine-tuned model, and the images and classes of its task.

    Attributes:
        weights: the state dict: a file, a folder, or an id on the Hugging Face hub.
        images: folder of unlabelled images of the task.
        classes: names of its classes in the order of the head's rows, or a text file with one per line.
        templates: sentences around the names, for a head that the base's text tower makes.
        head: safetensors file with the saved head, one tensor of shape (classes, d) with the logit scale in it.
    """

    weights: str
    images: str
    classes: Sequence[str] | str | None = None
    templates: Sequence[str] = (TEMPLATE,)
    head: str | None = None

    @classmethod
    def of(cls, name: str, options: Any) -> "OwnModel":
        """Read one model from a configuration.

        Raises:
            UserError: an option is missing, unknown or of another kind.
        """
        known = ("weights", "images", "classes", "templates", "head")
        if not isinstance(options, Mapping):
            raise UserError(
                f"Expected suite.models.{name} to set {', '.join(known)}, got {options!r}. For example "
                f"{name}: {{weights: {name}.safetensors, images: photos, classes: [cat, dog]}}."
            )
        unknown = [str(one) for one in options if one not in known]
        missing = [one for one in ("weights", "images") if not options.get(one)]
        if unknown or missing:
            faults = ([f"no {one}" for one in missing]) + [f"unknown {one}" for one in unknown]
            raise UserError(
                f"suite.models.{name} contains {', '.join(faults)}. The options of a model are: {', '.join(known)}."
            )
        if not options.get("classes") and not options.get("head"):
            raise UserError(
                f"suite.models.{name} requires a head. Give classes, from which the base's text tower creates"
                " the head, or head=<a saved head>."
            )
        given = {key: value for key, value in options.items() if value is not None}
        if isinstance(given.get("templates"), str):
            given["templates"] = [given["templates"]]
        wrong = [one for one in given.get("templates", ()) if "{}" not in str(one)]
        if wrong:
            raise UserError(
                f"suite.models.{name}: the template {wrong[0]!r} lacks the placeholder {{}} for the class name."
            )
        return cls(**given)

    def class_names(self, name: str) -> list[str]:
        """Return the names of the classes, or an empty list if only a head is given.

        Raises:
            UserError: the file does not exist, a name is empty or repeated, or there are fewer than two.
        """
        if self.classes is None:
            return []
        if isinstance(self.classes, str):
            path = Path(self.classes).expanduser()
            if not path.is_file():
                raise UserError(
                    f"There is no file of class names for '{name}' at {path}. Write this file with one name per line,"
                    " or give a list of names."
                )
            try:
                # utf-8-sig accepts the byte-order mark that some editors write.
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"Expected the class names of '{name}' in {path} to be text in UTF-8, but byte"
                    f" {error.start} is invalid. Save the file as UTF-8."
                ) from error
            given: Sequence[Any] = [line for line in lines if line.strip()]
        else:
            given = self.classes
        names = [clean_name(one, f"each of the class names of '{name}'") for one in given]
        repeated = sorted({one for one in names if names.count(one) > 1})
        if len(names) < 2 or repeated:
            fault = f"{', '.join(repeated)} twice" if repeated else f"{len(names)} names"
            raise UserError(f"Expected at least two different class names for '{name}', got {fault}.")
        return names


@dataclass(frozen=True)
class ModelSuite:
    """Specify a suite of users' own CLIP models and unlabelled images of the models' tasks.

    Attributes:
        name: name of the suite.
        model: the architecture of all of them, with its preprocessing.
        base: the base's state dict: a file, a folder, or an id on the Hugging Face hub; of both towers where a head is
            made from class names. None if the file of the models names it.
        models: name → options of `OwnModel`; or a YAML file with `models`, and perhaps `base`, whose paths start from
            the file's folder.
        warn_above: norm of a task vector, relative to the base's, above which a warning suggests that the base is
            wrong.
        refuse_above: relative norm above which an error is raised.

    Raises:
        UserError: there are fewer than two models, no base, or a model's options are invalid.

    Examples:
        >>> from mergeability.examples import tiny_clip
        >>> from mergeability.pipeline.own_models import ModelSuite
        >>> models = {
        ...     task: {"weights": f"{task}.safetensors", "images": f"photos/{task}", "classes": ["dark", "light"]}
        ...     for task in ("greys", "hues")
        ... }
        >>> suite = ModelSuite("mine", tiny_clip(), "base.safetensors", models)
        >>> list(suite.members)
        ['greys', 'hues']
    """

    name: str
    model: ClipModel
    base: str | None
    models: Mapping[str, Any] | str
    warn_above: float | int = 0.5
    refuse_above: float | int = 2.0
    members: dict[str, OwnModel] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        models = self.models
        if isinstance(models, str):
            base, models = _described(Path(models).expanduser())
            object.__setattr__(self, "base", self.base or base)
        if not isinstance(models, Mapping) or len(models) < 2:
            raise UserError(
                "Expected suite.models to list two or more models, as a YAML file or "
                "'suite.models={a: {weights: …, images: …, classes: […]}, b: …}'."
            )
        if not isinstance(self.model, ClipModel):
            raise UserError(
                "Only image models can be given in suite.models, but model= selects a model that reads texts. Set "
                "model= to the architecture of the models, such as model=vit_b16."
            )
        if not self.base:
            raise UserError(
                "The base model is missing. Set suite.base=… to the model from which these models were"
                " fine-tuned."
            )
        names = clean_names(models, "models")
        say_alike(names, "models")
        self.members.update({name: OwnModel.of(name, models[given]) for name, given in names.items()})

    def load(self, store: Store, layout: Layout = _AS_STORED) -> TaskVectors:
        """Open the task vectors of the models, with tensors split into parameters by `layout`.

        Raises:
            UserError: a model cannot be found or read, has another base, or uses other image preprocessing.
        """
        for source in (str(self.base), *(one.weights for one in self.members.values())):
            check_preprocessing(find_weights(source), self.model)
        vectors = TaskVectors.load(
            {name: open_checkpoint(one.weights, store, str(self.base)) for name, one in self.members.items()},
            base=open_checkpoint(str(self.base), store),
            store=store,
            warn_above=self.warn_above,
            refuse_above=self.refuse_above,
        )
        return layout.of(vectors)

    def heads(self) -> dict[str, Tensor]:
        """Read the saved heads, and create the other heads from class names.

        Raises:
            UserError: a head is not a single matrix, its classes or width differ from the names or the encoder,
                or the base has no text tower to make one.
        """
        return {name: self._head(name, one) for name, one in self.members.items()}

    def _head(self, name: str, one: OwnModel) -> Tensor:
        names = one.class_names(name)
        if one.head is None:
            return (
                zero_shot_head(self._whole_base, self.model.tokenize, names, one.templates).detach().clone()
            )
        path = find_weights(one.head)
        tensors = read_tensors(path)
        matrices = [value for value in tensors.values() if value.ndim == 2]
        if len(tensors) != 1 or len(matrices) != 1:
            raise UserError(
                f"Expected one tensor of shape (classes, d) in the head {path} of '{name}', got "
                f"{', '.join(f'{key} {tuple(value.shape)}' for key, value in tensors.items()) or 'none'}."
            )
        head, width = matrices[0].float(), int(self.model.configuration["embed_dim"])
        if head.shape[1] != width:
            raise UserError(
                f"The head {path} of '{name}' expects features of {head.shape[1]} dimensions, but"
                f" model={self.model.name} produces {width}. Set model= to the architecture of the encoders."
            )
        if names and len(names) != len(head):
            raise UserError(
                f"The head {path} of '{name}' has {len(head)} classes, but {len(names)} class names are given. "
                "Remove classes=, or give the classes of the head."
            )
        return head

    @cached_property
    def _whole_base(self) -> "CLIP":
        """The base model, including the text tower."""
        clip = self.model.architecture_only()
        quick = bool(self.model.configuration.get("quick_gelu"))
        try:
            clip.load_state_dict(clip_weights(clip, str(self.base), self.model.name, quick))
        except UserError as error:
            raise UserError(
                f"The base's text tower is required to create heads from class names. {error} Or give each "
                "model a saved head."
            ) from error
        return clip


class _OnceOnly(yaml.SafeLoader):
    """YAML's safe loader, but with an error for duplicate keys, of which it would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(repeated)} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _described(path: Path) -> tuple[str | None, Any]:
    """Read the base and the models from a YAML file; relative paths start from its folder.

    Raises:
        UserError: the file does not exist, or does not describe models.
    """
    if not path.is_file():
        raise UserError(
            f"There is no file {path}. Give a YAML file that contains the keys `base` and `models`, as"
            " conf/suite/models.yaml does."
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _OnceOnly)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("models"), Mapping):
        raise UserError(
            f"{path} has no models. Expected `base: …` and `models: {{name: {{weights: …, images: …}}}}`."
        )
    unknown = sorted(str(key) for key in content.keys() - {"base", "models"})
    if unknown:
        raise UserError(f"Expected only the keys `base` and `models` in {path}, got {', '.join(unknown)}.")

    def found(value: Any) -> Any:
        beside = path.parent / str(value)
        return str(beside) if isinstance(value, str) and beside.exists() else value

    def placed(options: Any) -> Any:
        if not isinstance(options, Mapping):
            return options
        return {key: found(value) if key in _PATHS else value for key, value in options.items()}

    models = {name: placed(options) for name, options in content["models"].items()}
    return found(content.get("base")), models
