"""Predict whether models merge well, and with which method, without labelled images."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeability.errors import UserError
from mergeability.metrics.catalogue import CATALOGUE, Metric
from mergeability.models.clip import ClipModel
from mergeability.pipeline.own_models import TEMPLATE, ModelSuite
from mergeability.pipeline.request import MergeSettings, Request
from mergeability.pipeline.result import Analysis
from mergeability.pipeline.run import analyse
from mergeability.pipeline.suites import CheckpointSuite
from mergeability.pipeline.verdicts import verdict
from mergeability.prediction.answers import Verdict
from mergeability.progress import Progress, no_progress
from mergeability.store import Store
from mergeability.verbs.architecture import model_called, recognised
from mergeability.verbs.comparing import weight_space
from mergeability.verbs.defaults import (
    method_called,
    probed_images,
    profile,
    published_methods,
    suite_options,
)
from mergeability.verbs.sources import Model, Models, as_paths, named
from mergeability.weights.hub import open_checkpoint

_WITHOUT_EVIDENCE = (
    "A folder of unlabelled images and the names of the classes for each model (CLIP): every merge is tried on 64 of "
    "them. On the command line --images and --classes, in Python images= and classes=.",
    "A predictor fitted on earlier merges of other models: --fitted or fitted=, with the folder of that analysis.",
    "Labelled test images: an analysis of a suite of tasks measures the merges in place of predicting them.",
)


@dataclass(frozen=True, repr=False)
class Prediction:
    """Hold the verdict on some models, and the analysis on which it is based.

    Attributes:
        verdict: the recommended method, the expected outcome, its certainty, and reasons.
        analysis: the analysis, from which the report is written.

    Examples:
        >>> import pandas as pd
        >>> from mergeability.pipeline import Analysis, verdict
        >>> from mergeability.verbs import Prediction
        >>> pairs = pd.DataFrame({"task_a": ["cars"], "task_b": ["svhn"], "norm_acc_ties": [0.95]})
        >>> analysis = Analysis("Two models", pairs, metrics=[], methods=["ties"])
        >>> Prediction(verdict(analysis), analysis).verdict.recommended
        'ties'
    """

    verdict: Verdict
    analysis: Analysis

    def save(self, folder: str | Path) -> Path:
        """Write the report, tables and `verdict.txt` to a folder; return the path of the report."""
        from mergeability.reporting.result_files import save

        return save(self.analysis, Path(folder))

    def to_json(self) -> str:
        """Convert the verdict to JSON; unknown numbers are null."""
        record = dataclasses.asdict(self.verdict)
        return json.dumps({"recommended": self.verdict.recommended or None, **_without_nan(record)}, indent=1)

    def __repr__(self) -> str:
        return str(self.verdict)

    def _repr_html_(self) -> str:
        """Show the verdict in a notebook."""
        return self.verdict.html()


def predict(
    base: Model,
    models: Models,
    *,
    images: Mapping[str, str | Path] | None = None,
    classes: Mapping[str, Sequence[str] | str] | None = None,
    heads: Mapping[str, str] | None = None,
    templates: Sequence[str] = (TEMPLATE,),
    model: str | ClipModel | None = None,
    fitted: str | Path | None = None,
    methods: Sequence[str] | None = None,
    device: str = "auto",
    store: str | Path | None = None,
    progress: Progress = no_progress,
) -> Prediction:
    """Predict whether two or more models merge well, with which method, and why.

    With `images`, every merge is probed on unlabelled images of each task, which needs CLIP models and for each of them
    names of classes or a saved head. With `fitted`, a predictor of an earlier run scores the pairs from their metrics.
    With neither, the verdict contains no prediction and lists the missing evidence.

    Args:
        base: a path, an id on the Hugging Face hub, a state dict, or a module; with both towers where heads are made
            from names of classes.
        models: name → model, each given in the same way; or a list of paths and ids.
        images: name of each model → folder of unlabelled images of its task, 8 or more.
        classes: name of each model → names of its classes, or a text file with one per line.
        heads: name of each model → safetensors file with a saved head of shape (classes, d).
        templates: sentences around the names of classes, each with `{}`.
        model: the architecture, a name of `conf/model` or a description; recognised by its shapes when None.
        fitted: folder of an earlier run, or its `fitted.json`.
        methods: names of merge methods to compare; by default the six of arXiv 2601.22285.
        device: "cpu", "cuda", or "auto".
        store: folder in which computed values are kept for the next call; in memory when None.
        progress: wraps long loops: (items, description, total) → the items.

    Returns:
        The verdict, with the analysis behind it.

    Raises:
        UserError: there are fewer than two models, images or classes are given for some models only, or something
            cannot be read.

    Examples:
        >>> from mergeability import predict
        >>> from mergeability.examples import tiny_clip, tiny_own_models
        >>> base, models, images = tiny_own_models()
        >>> classes = {task: ["dark", "light"] for task in models}
        >>> known = {"images": images, "classes": classes, "model": tiny_clip()}
        >>> found = predict(base, models, methods=["average", "ties"], **known)
        >>> sorted(one.method for one in found.verdict.forecasts)
        ['average', 'ties']
    """
    several = named(models)
    if len(several) < 2:
        raise UserError(
            f"Expected at least two models and the base from which they were fine-tuned, got {len(several)}."
        )
    if not images and (classes or heads):
        raise UserError(
            "classes and heads are only used with images. Also give a folder of unlabelled images for each"
            " model."
        )
    with as_paths(base, several) as (base_path, paths):
        if images:
            owned = _owned(paths, images, classes or {}, heads or {}, templates)
            found = _probed(base_path, owned, model, methods, fitted, device, store, progress)
        else:
            found = _measured(base_path, paths, fitted, store, progress)
    answer = verdict(found)
    if not images and not fitted:
        answer = dataclasses.replace(answer, next_steps=_WITHOUT_EVIDENCE)
    return Prediction(answer, found)


def _owned(
    paths: Mapping[str, str],
    images: Mapping[str, str | Path],
    classes: Mapping[str, Sequence[str] | str],
    heads: Mapping[str, str],
    templates: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Arrange the options of each model.

    Raises:
        UserError: an option is given for an unknown model, or is missing for a model.
    """
    for what, given in (("images", images), ("classes", classes), ("a head", heads)):
        unknown = [name for name in given if name not in paths]
        if unknown:
            raise UserError(
                f"Expected {what} only for the models {', '.join(paths)}, got {what} for"
                f" {', '.join(unknown)}."
            )
    without = [name for name in paths if name not in images]
    if without:
        raise UserError(
            f"There are no images for {', '.join(without)}, but the probe requires a folder of images for"
            " every model. Give a folder for every model, or for none."
        )
    headless = [name for name in paths if name not in classes and name not in heads]
    if headless:
        raise UserError(
            f"There are neither classes nor a head for {', '.join(headless)}. Give the names of the classes,"
            " or a saved head."
        )
    return {
        name: {
            "weights": path,
            "images": str(images[name]),
            "classes": classes.get(name),
            "head": heads.get(name),
            "templates": list(templates),
        }
        for name, path in paths.items()
    }


def _probed(
    base: str,
    owned: Mapping[str, Any],
    model: str | ClipModel | None,
    methods: Sequence[str] | None,
    fitted: str | Path | None,
    device: str,
    store: str | Path | None,
    progress: Progress,
) -> Analysis:
    if model is None:
        model = recognised(open_checkpoint(base, Store(None if store is None else str(store))))
    elif isinstance(model, str):
        model = model_called(model)
    functional = {name: one.metric for name, one in CATALOGUE.items() if one.traits.category == "functional"}
    metrics: dict[str, Metric] = {**weight_space(), **functional}
    names = published_methods() if methods is None else methods
    request = Request(
        ModelSuite("models", model, base, owned, **suite_options("models")),
        metrics,
        {name: method_called(name) for name in names},
        fitted=None if fitted is None else str(fitted),
        profile=profile(),
        merging=MergeSettings(probe=probed_images()),
        store=None if store is None else str(store),
        device=device,
    )
    return analyse(request, progress)


def _measured(
    base: str,
    paths: Mapping[str, str],
    fitted: str | Path | None,
    store: str | Path | None,
    progress: Progress,
) -> Analysis:
    request = Request(
        CheckpointSuite("checkpoints", base, paths, **suite_options("checkpoints")),
        weight_space(),
        fitted=None if fitted is None else str(fitted),
        profile=profile(),
        store=None if store is None else str(store),
        device="cpu",
    )
    return analyse(request, progress)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
