"""Check that models share one architecture and were fine-tuned from the given base."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mergeability.errors import UserError
from mergeability.store import Store
from mergeability.store.noted_hashes import noted_hash
from mergeability.task_vectors.deltas import Deltas
from mergeability.task_vectors.norms import relative_norms
from mergeability.weights.adapter_settings import refuse_factors
from mergeability.weights.checkpoints import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseCheck:
    """Use the relative norm ‖τ_t‖ / ‖θ_0‖ of task vectors to check that models were fine-tuned from their base.

    Attributes:
        warn_above: relative norm above which a warning suggests that the base is wrong.
        refuse_above: relative norm above which an error is raised.
        known: hash of a model → its known relative norm.
    """

    warn_above: float | int
    refuse_above: float | int
    known: dict[str, float] = field(default_factory=dict)

    def relative_norms(self, deltas: Deltas, norms: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the relative norm ‖τ_t‖ / ‖θ_0‖ of each task; every norm is computed once and cached.

        Args:
            deltas: the models, whose store caches the norms.
            norms: task → ‖τ_t‖, if already known; computed otherwise.
        """
        unknown = [task for task in deltas.tasks if deltas.hashes[task] not in self.known]
        if unknown:
            for task, norm in relative_norms(deltas, unknown, norms).items():
                self.known[deltas.hashes[task]] = norm
        return {task: self.known[deltas.hashes[task]] for task in deltas.tasks}

    def check(self, deltas: Deltas, norms: Mapping[str, float] | None = None) -> None:
        """Raise an error if the norm of a task vector is too large, and warn once about suspiciously large norms.

        Args:
            deltas: the models.
            norms: task → ‖τ_t‖, if already known; computed otherwise.

        Raises:
            UserError: a model's task vector is longer than `refuse_above` times the base.
        """
        unchecked = [task for task in deltas.tasks if deltas.hashes[task] not in self.known]
        for task, norm in self.relative_norms(deltas, norms).items():
            if norm > self.refuse_above and deltas.model(task).is_adapted:
                # An adapter can be added to any base, so its length does not identify the base.
                if task in unchecked:
                    logger.warning(
                        "The adapter of '%s' changes the base by %.3g times the norm of the base, more than %g. Check"
                        " that the adapter was trained on this base and that the training was completed.",
                        task,
                        norm,
                        self.refuse_above,
                    )
                continue
            if norm > self.refuse_above:
                raise UserError(
                    f"The model of '{task}' was not fine-tuned from this base: the norm of its task vector is"
                    f" {norm:.3g} times the norm of the base, but at most {self.refuse_above:g} is accepted."
                    " Give the base from which the model was fine-tuned."
                )
            if norm > self.warn_above and task in unchecked:
                logger.warning(
                    "The norm of the task vector of '%s' is %.3g times the norm of the base, more than %g."
                    " Check that the model was fine-tuned from this base.",
                    task,
                    norm,
                    self.warn_above,
                )


def check_same_architecture(
    task: str, model: Checkpoint, base: Checkpoint, left_out: Collection[str] = ()
) -> None:
    """Check that a model has the same floating-point tensors as the base, with the same shapes.

    Args:
        task: whose model it is.
        model: the model.
        base: the base.
        left_out: tensors that are not compared.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    expected, given = set(base.floating).difference(left_out), set(model.floating).difference(left_out)
    missing, extra = sorted(expected - given), sorted(given - expected)
    if missing or extra:
        refuse_factors(f"the model of '{task}'", extra)
        refuse_factors("the base", missing)
        parts = [f"lacks {len(missing)} such as '{missing[0]}'"] if missing else []
        parts += [f"has {len(extra)} the base lacks, such as '{extra[0]}'"] if extra else []
        raise UserError(
            f"Expected the same floating-point tensors in the model of '{task}' as in the base, but the model"
            f" {' and '.join(parts)}. Give state dicts of one architecture, or leave tensors out with"
            " exclude=…."
        )
    for name in sorted(expected):
        if tuple(model.shapes[name]) != tuple(base.shapes[name]):
            raise UserError(
                f"'{name}' has shape {tuple(model.shapes[name])} in the model of '{task}' and"
                f" {tuple(base.shapes[name])} in the base, so the architectures differ. Give models of one"
                " architecture."
            )


def warn_about_copies(hashes: Mapping[str, str], base: str) -> None:
    """Warn about models whose files are identical to the base's or to each other."""
    first: dict[str, str] = {}
    for task, sha256 in hashes.items():
        if sha256 == base:
            logger.warning("'%s' and the base have identical files: it adds nothing to a merge.", task)
        if sha256 in first:
            logger.warning("'%s' and '%s' have identical files.", first[sha256], task)
        first.setdefault(sha256, task)


def file_hash(checkpoint: Checkpoint, store: Store) -> str:
    """Return the hashes of a checkpoint's files; use cached hashes if the files are unchanged."""
    return checkpoint.hash_by(lambda path: noted_hash(path, checkpoint.hash_of, store))
