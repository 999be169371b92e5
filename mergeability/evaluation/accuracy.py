"""Accuracy of an encoder's weights on the tasks' test images, each computed once."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mergeability.checkpoints import tensors_hash
from mergeability.data.tasks import Images
from mergeability.models.classify import accuracy
from mergeability.models.weights import encoder_state
from mergeability.store import Store, digest

# Part of every store key below: raise it when what is stored changes meaning.
_VERSION = 1
# Below and above these, accuracy on pixels of the rendered tasks falls.
_PIXEL_PENALTIES = (1000.0, 100.0)


@dataclass(frozen=True)
class Judge:
    """Measure test accuracies, with one encoder into which weights are swapped.

    Attributes:
        encoder: images → features; only its architecture is used, its weights never.
        preprocess: uint8 images → the encoder's normalised float input.
        configuration: what the encoder was built from and what `preprocess` depends on, as a JSON-able record:
            part of the store's keys.
        heads: task → frozen zero-shot head (classes × features).
        tests: task → test images.
        store: where accuracies are kept.
    """

    encoder: nn.Module
    preprocess: Callable[[Tensor], Tensor]
    configuration: Mapping[str, Any]
    heads: Mapping[str, Tensor]
    tests: Mapping[str, Images]
    store: Store

    def accuracies(
        self, weights: Mapping[str, Any], state: Callable[[], Mapping[str, Tensor]], tasks: tuple[str, ...]
    ) -> dict[str, float]:
        """Return the test accuracy of one set of weights on each of some tasks, in [0, 1].

        Args:
            weights: what determines the weights, as a JSON-able record: part of the store's key.
            state: makes the state dict (canonical names); called only when an accuracy is not in the store.
            tasks: the tasks to test on; all of them in one swap of the weights.
        """
        keys = {task: {"weights": dict(weights), **self._key(task)} for task in tasks}
        swapped_in: list[bool] = []

        def measure(task: str) -> dict[str, float | int]:
            # Only when a value is computed, and always then: the encoder holds whatever came last.
            if not swapped_in:
                self._swap_in(state(), f"the model to be tested on {', '.join(tasks)}")
                swapped_in.append(True)
            return self._measure(task)

        records = {
            task: self.store.record("accuracy", keys[task], lambda task=task: measure(task)) for task in tasks
        }
        return {task: record["accuracy"] for task, record in records.items()}

    def _measure(self, task: str) -> dict[str, float | int]:
        images = self.tests[task]
        return {
            "accuracy": accuracy(self.encoder, self.heads[task], self.preprocess, images),
            "images": len(images),
        }

    def _swap_in(self, state: Mapping[str, Tensor], owner: str) -> None:
        with torch.no_grad():
            self.encoder.load_state_dict(encoder_state(self.encoder, state, owner))

    @cached_property
    def _architecture(self) -> str:
        # The text form names every module, but not all of their options: the number of heads is missing.
        return digest({"encoder": repr(self.encoder), "configuration": dict(self.configuration)})

    @cached_property
    def _task_keys(self) -> dict[str, dict[str, str]]:
        return {}

    def _key(self, task: str) -> dict[str, Any]:
        if task not in self._task_keys:
            self._task_keys[task] = {
                "head": tensors_hash({"head": self.heads[task]}),
                "images": self.tests[task].fingerprint,
                "encoder": self._architecture,
                "version": str(_VERSION),
            }
        return self._task_keys[task]


def pixel_accuracy(train: Images, validation: Images, test: Images, store: Store) -> float:
    """Return the test accuracy of multinomial logistic regression on raw pixels: what needs no representation.

    Pixels are scaled to [-1, 1]; the L2 penalty is the one of two that does better on the validation images.
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
        # A baseline's last digits: its accuracy has settled long before its weights have.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / penalty, max_iter=100, tol=1e-3)
        return model.fit(_pixels(train), train.labels.numpy())


def _pixels(images: Images) -> Any:
    return (images.images.flatten(1).float() / 127.5 - 1).numpy()
