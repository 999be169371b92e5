"""Measure the accuracies of encoders on the tasks' test splits; every accuracy is computed once and stored."""

import base64
import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn

from mergeability.data.inputs import Images, Inputs, Samples
from mergeability.errors import UserError
from mergeability.evaluation.batchnorm import recalibrate_batchnorm
from mergeability.files import digest
from mergeability.models.classify import correct, encoded
from mergeability.random import seeded_generator
from mergeability.store import Store
from mergeability.weights.checkpoints import PREFIX, tensors_hash
from mergeability.weights.encoder_state import encoder_state

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Weaker and stronger penalties lower the pixel accuracy on the rendered tasks.
_PIXEL_PENALTIES = (1000.0, 100.0)


@dataclass(frozen=True)
class Evaluator:
    """Measure the accuracy of weights on the tasks' samples; each accuracy is computed once and stored.

    Attributes:
        encoder: inputs → features; only its architecture is used, its weights are replaced.
        preprocess: rows of samples, such as uint8 images, → the encoder's input.
        configuration: JSON-able record of what determines the encoder and `preprocess`: part of the store's keys.
        heads: task → frozen zero-shot head, classes × features.
        tests: task → test samples.
        store: where accuracies are kept.
        validation: task → validation samples, used only to tune scales.
        device: device of the encoder: "cpu", "cuda" or "cuda:<number>".
        precision: "float32", or "bfloat16" for the matrix products of the encoder.
        subset: number of test samples to use per task, at least 1; all when None.
        validation_subset: number of validation samples to use per task, at least 1; all when None.
        subset_seed: seed of the draw of both subsets, which depends only on it and on the task's name.
        batch_size: samples per forward pass; affects only speed and memory.

    Raises:
        UserError: the precision is unknown, or a number of samples below 1.

    Examples:
        >>> from mergeability.examples import tiny_evaluator, tiny_profiles
        >>> model = tiny_profiles().task_vectors.model("cars")
        >>> tiny_evaluator().accuracies({"file": model.sha256}, model.state_dict, ["cars", "dtd"])
        {'cars': 0.375, 'dtd': 0.75}
    """

    encoder: nn.Module
    preprocess: Callable[[Tensor], Tensor]
    configuration: Mapping[str, Any]
    heads: Mapping[str, Tensor]
    tests: Mapping[str, Samples]
    store: Store
    validation: Mapping[str, Samples] = field(default_factory=dict)
    device: str = "cpu"
    precision: str = "float32"
    subset: int | None = None
    validation_subset: int | None = None
    subset_seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise UserError(f"Expected precision to be {' or '.join(_PRECISIONS)}, got {self.precision!r}.")
        for name in ("subset", "validation_subset", "batch_size"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"Expected {name} to be at least 1, got {count}.")

    def accuracies(
        self,
        weights: Mapping[str, Any],
        state: Callable[[], Mapping[str, Tensor]],
        tasks: Sequence[str],
        split: str = "test",
    ) -> dict[str, float]:
        """Return the accuracy of one set of weights on each of some tasks, in [0, 1].

        Args:
            weights: JSON-able record that determines the weights: part of the store's key.
            state: returns the state dict (canonical names); called only if an accuracy is not in the store.
            tasks: the tasks to test on; the weights are loaded once for all of them.
            split: "test" or "validation".

        Raises:
            UserError: the tensors are not the encoder's, what it computes with them is not finite, or there are
                no images of that split.
        """
        return {task: one["accuracy"] for task, one in self._records(weights, state, tasks, split).items()}

    def hits(
        self, weights: Mapping[str, Any], state: Callable[[], Mapping[str, Tensor]], tasks: Sequence[str]
    ) -> dict[str, Bool[np.ndarray, " N"]]:
        """Return whether each test image was classified correctly; available only if `subset` is set."""
        records = self._records(weights, state, tasks, "test")
        return {task: _unpacked(one["hits"], one["images"]) for task, one in records.items() if "hits" in one}

    def features(
        self, state: Mapping[str, Tensor], inputs: Mapping[str, Inputs]
    ) -> dict[str, Float32[Tensor, "n d"]]:
        """Return the features of some tasks' inputs for one set of weights, without using labels.

        Raises:
            UserError: the tensors are not the encoder's, or a feature is not finite.
        """
        tasks = tuple(inputs)
        self._swap_in(state, tasks)
        found = {
            task: encoded(self._encoder, one, self.batch_size, _PRECISIONS[self.precision])
            for task, one in inputs.items()
        }
        wrong = [task for task, rows in found.items() if not torch.isfinite(rows).all()]
        if wrong:
            raise UserError(
                f"Expected finite features, got NaN or Inf from {_owner(tasks)} on {', '.join(wrong)}: the weights "
                "overflow on these samples. Merge at a smaller alpha, or train at a lower learning rate."
            )
        return found

    def key(self, task: str) -> dict[str, Any]:
        """Return the parts of a store key other than weights and images: head, encoder, device and precision."""
        found: dict[str, Any] = {
            "head": tensors_hash({"head": self.heads[task]}),
            "encoder": self._architecture,
        }
        if not self.device.startswith("cpu"):
            found["device"] = self.device.partition(":")[0]
        if self.precision != "float32":
            found["precision"] = self.precision
        return found

    def recalibrated(
        self, state: Mapping[str, Tensor], images: Tensor, tasks: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return a state dict with batch-norm statistics re-estimated on preprocessed images."""
        self._swap_in(state, tasks)
        found = recalibrate_batchnorm(self._encoder, images.to(self.device))
        prefix = PREFIX if any(name.startswith(PREFIX) for name in state) else ""
        renewed = {f"{prefix}{name}": value.cpu() for name, value in found.items()}
        return {name: renewed.get(name, value).to(value.dtype) for name, value in state.items()}

    def _records(
        self,
        weights: Mapping[str, Any],
        state: Callable[[], Mapping[str, Tensor]],
        tasks: Sequence[str],
        split: str,
    ) -> dict[str, dict[str, Any]]:
        swapped_in: list[bool] = []

        def measure(task: str) -> dict[str, Any]:
            # Load the weights whenever a value is computed, because the encoder may contain those of another merge.
            if not swapped_in:
                self._swap_in(state(), tasks)
                swapped_in.append(True)
            try:
                return self._measure(task, split)
            except UserError as error:
                raise UserError(f"{_owner(tasks)[0].upper()}{_owner(tasks)[1:]}: {error}") from error

        return {
            task: self.store.record(
                "accuracy",
                {"weights": dict(weights), **self._key(task, split)},
                lambda task=task: measure(task),
            )
            for task in tasks
        }

    def _measure(self, task: str, split: str) -> dict[str, Any]:
        images = self._samples(task, split)
        hits = correct(
            self._encoder,
            self.heads[task],
            self.preprocess,
            images,
            self.batch_size,
            _PRECISIONS[self.precision],
        )
        right = int(hits.sum())
        found: dict[str, Any] = {"accuracy": right / len(images), "images": len(images), "correct": right}
        if split == "test" and self.subset is not None:
            found["hits"] = base64.b64encode(np.packbits(hits).tobytes()).decode()
        return found

    def _samples(self, task: str, split: str) -> Samples:
        if (task, split) not in self._chosen:
            choices = {
                "test": (self.tests, self.subset),
                "validation": (self.validation, self.validation_subset),
            }
            given, count = choices.get(split, ({}, None))
            if task not in given:
                raise UserError(
                    f"No {split} split for '{task}'. Tasks with this split: {', '.join(given) or 'none'}."
                )
            self._chosen[task, split] = _drawn(given[task], count, task, split, self.subset_seed)
        return self._chosen[task, split]

    def _swap_in(self, state: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
        with torch.no_grad():
            self._encoder.load_state_dict(encoder_state(self._encoder, state, _owner(tasks)))

    @cached_property
    def _encoder(self) -> nn.Module:
        """A copy of the encoder on the device; the given encoder is not moved."""
        return self.encoder if self.device == "cpu" else copy.deepcopy(self.encoder).to(self.device)

    @cached_property
    def _architecture(self) -> str:
        # repr() shows every module, but not all options: the number of attention heads is missing.
        return digest({"encoder": repr(self.encoder), "configuration": dict(self.configuration)})

    @cached_property
    def _chosen(self) -> dict[tuple[str, str], Samples]:
        return {}

    @cached_property
    def _keys(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {}

    def _key(self, task: str, split: str) -> dict[str, Any]:
        """Return the store key of an accuracy without the weights; defaults are omitted so that old keys stay valid."""
        if (task, split) not in self._keys:
            key: dict[str, Any] = {
                **self.key(task),
                "images": self._samples(task, split).fingerprint,
                "version": str(_VERSION),
            }
            if split == "test" and self.subset is not None:
                key["hits"] = True
            self._keys[task, split] = key
        return self._keys[task, split]


def _owner(tasks: Sequence[str]) -> str:
    return f"the model to be tested on {', '.join(tasks)}"


def _drawn(samples: Samples, count: int | None, task: str, split: str, seed: int) -> Samples:
    """Draw `count` samples without replacement and keep the original order; return all samples if there are fewer."""
    if count is None or count >= len(samples):
        return samples
    order = torch.randperm(len(samples), generator=seeded_generator("evaluation", task, split, seed))
    return samples[order[:count].sort().values]


def _unpacked(hits: str, count: int) -> Bool[np.ndarray, " N"]:
    packed = np.frombuffer(base64.b64decode(hits), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)


def pixel_accuracy(train: Images, validation: Images, test: Images, store: Store) -> float:
    """Return the test accuracy, in [0, 1], of multinomial logistic regression on raw pixels: a baseline.

    Pixels are scaled to [-1, 1]. Of two L2 penalties, the one with the higher validation accuracy is used.

    Args:
        train: images to fit on.
        validation: images to choose the penalty on.
        test: images to test on.
        store: where the accuracy is kept.

    Examples:
        >>> from mergeability.evaluation import pixel_accuracy
        >>> from mergeability.examples import tiny_images
        >>> from mergeability.store import Store
        >>> train, test = tiny_images("train", 30), tiny_images("test", 9)
        >>> pixel_accuracy(train, train, test, Store())
        1.0
    """
    parts = {"train": train.fingerprint, "validation": validation.fingerprint, "test": test.fingerprint}
    key = {**parts, "penalties": list(_PIXEL_PENALTIES), "version": _VERSION}

    def compute() -> dict[str, float]:
        fitted = [_pixel_regression(train, penalty) for penalty in _PIXEL_PENALTIES]
        best = max(fitted, key=lambda model: model.score(_pixels(validation), validation.labels.numpy()))
        return {"accuracy": float(best.score(_pixels(test), test.labels.numpy()))}

    return store.record("pixel_accuracy", key, compute)["accuracy"]


def _pixel_regression(train: Images, penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Convergence warnings are irrelevant: the accuracy of the baseline converges before its weights.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / penalty, max_iter=100, tol=1e-3)
        return model.fit(_pixels(train), train.labels.numpy())


def _pixels(images: Images) -> Any:
    return (images.images.flatten(1).float() / 127.5 - 1).numpy()
