"""Compare a merge's predictions on a few unlabelled images with the predictions of each task's own model.

A probe is a small evaluation without labels, not a forecast: it requires the merge. The overlap directly estimates the
merge's normalised accuracy, and the confidence its accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mergeability.data.inputs import Inputs
from mergeability.errors import UserError
from mergeability.evaluation.evaluator import Evaluator
from mergeability.evaluation.merge import Weights
from mergeability.profiles.answers import (
    MEASURES,
    Probabilities,
    normalised,
    probabilities,
)

# Part of every store key below: increment it when the meaning of stored values changes.
_VERSION = 1


@dataclass(frozen=True)
class Probe:
    """Compare the classes that merges predict for unlabelled inputs with those that each task's own model predicts.

    Attributes:
        evaluator: holds the encoder, the heads and the store.
        inputs: task → preprocessed inputs; their labels, if any, are not read.
        own: task → the weights of its own fine-tuned model.
    """

    evaluator: Evaluator
    inputs: Mapping[str, Inputs]
    own: Callable[[str], Weights]
    _answers: dict[str, Probabilities] = field(default_factory=dict, repr=False)

    def values(self, weights: Weights, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Measure `overlap`, `agreement` and `confidence` of merged weights on the inputs of some tasks.

        Raises:
            UserError: there are no inputs for a task, or what the weights compute is not finite.
        """
        missing = [task for task in tasks if task not in self.inputs]
        if missing:
            raise UserError(
                f"Merges of {', '.join(missing)} cannot be probed, because there are no unlabelled images."
            )
        described, state = weights
        passed: list[dict[str, Tensor]] = []

        def measure(task: str) -> dict[str, Any]:
            # The weights are loaded once for all tasks, and only if a value is missing.
            if not passed:
                passed.append(self.evaluator.features(state(), {one: self.inputs[one] for one in tasks}))
            answers = self._answered(passed[0][task], task)
            own = self._own_answers(task)
            found = {name: compare(answers, own) for name, compare in MEASURES.items()}
            return {**found, "images": len(own)}

        return {
            task: self.evaluator.store.record(
                "probe", self._key(described, task), lambda task=task: measure(task)
            )
            for task in tasks
        }

    def _key(self, weights: Mapping[str, Any], task: str) -> dict[str, Any]:
        return {
            "weights": dict(weights),
            "own": dict(self.own(task)[0]),
            "samples": self.inputs[task].without_labels().fingerprint,
            **self.evaluator.key(task),
            "version": _VERSION,
        }

    def _own_answers(self, task: str) -> Probabilities:
        if task not in self._answers:
            described, state = self.own(task)
            key = {**self._key(described, task), "of": "own"}
            found = self.evaluator.store.arrays(
                "probe_features",
                key,
                lambda: {"features": self.evaluator.features(state(), {task: self.inputs[task]})[task]},
            )
            self._answers[task] = self._answered(found["features"], task)
        return self._answers[task]

    def _answered(self, features: Tensor, task: str) -> Probabilities:
        head = self.evaluator.heads[task].detach().cpu().double().numpy()
        answers = probabilities(normalised(features.numpy()), head)
        if np.isnan(answers).any():
            raise UserError(
                f"The features of images of '{task}' have norm 0, so no class can be predicted. Merge at a"
                " smaller alpha."
            )
        return answers


def probes_on(
    evaluator: Evaluator,
    inputs: Mapping[str, Inputs],
    own: Callable[[str], Weights],
    *,
    looks: bool,
    tunes: bool,
) -> tuple[Probe | None, Probe | None]:
    """Return two probes with disjoint inputs: one evaluates merges, the other selects scales.

    Inputs used to select a scale would overestimate it. So if scales are selected, the first half of each task's
    inputs is used for the choice, and the second half for the probe.

    Args:
        evaluator: holds the encoder, the heads and the store.
        inputs: task → preprocessed inputs without labels.
        own: task → the weights of its own fine-tuned model.
        looks: whether merges are probed; without it, the first probe is None.
        tunes: whether scales are chosen; without it, the second probe is None.
    """

    def probe(part: Callable[[Inputs], Inputs]) -> Probe:
        return Probe(evaluator, {task: part(one) for task, one in inputs.items()}, own)

    tuning = probe(lambda one: one[: len(one) // 2]) if tunes else None
    looking = probe(lambda one: one[len(one) // 2 :] if tunes else one) if looks else None
    return looking, tuning
