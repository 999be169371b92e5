"""Provide labelled texts; no network connection is needed."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergeability.checks import Count, Seed
from mergeability.data.inputs import SPLITS, Split, Texts, check_split
from mergeability.data.texts.catalogue import find_subject
from mergeability.data.texts.draws import Draws
from mergeability.errors import UserError
from mergeability.provenance import version

logger = logging.getLogger(__name__)

# Increment it when the division into splits changes.
_VERSION = 1


@dataclass(frozen=True)
class TextCorpus:
    """Provide labelled texts of one subject; no network connection is needed.

    Equal arguments always give equal texts. No text is in two splits, or twice in one, whatever its case and accents.
    Classes are equally frequent in every split as far as the subject has enough texts of each.

    Attributes:
        subject: a name in `SUBJECTS`.
        train: number of training texts, at least 0.
        validation: number of validation texts, at least 0.
        test: number of test texts, at least 0.
        seed: seed of the texts and of their division into splits.

    Raises:
        UserError: the subject is unknown, or a count is negative.

    Examples:
        >>> from mergeability.data.texts import TextCorpus
        >>> texts = TextCorpus("sums", train=10, validation=5, test=5).load("train")
        >>> len(texts), texts.labels.bincount()
        (10, tensor([2, 2, 2, 2, 2]))
    """

    subject: str
    train: Count = 1000
    validation: Count = 200
    test: Count = 200
    seed: Seed = 0

    def __post_init__(self) -> None:
        find_subject(self.subject)
        for split in SPLITS:
            count = getattr(self, split)
            if count < 0:
                raise UserError(f"Texts of {self.subject!r}: expected {split} to be at least 0, got {count}.")

    def load(self, split: Split) -> Texts:
        """Return the texts of one split.

        Raises:
            UserError: an unknown split, a package is missing, or the subject has fewer texts than all splits need.
        """
        check_split(split)
        texts = _in_turn(self._texts_of_classes())
        # The smaller splits come first: each is a window of a sequence in which classes alternate.
        start = {"test": 0, "validation": self.test, "train": self.test + self.validation}[split]
        draws = Draws("texts", self.subject, self.seed, split)
        chosen = draws.shuffled(texts[start : start + getattr(self, split)])
        logger.debug("Took %d %s texts of %s, seed %d", len(chosen), split, self.subject, self.seed)
        return Texts(
            [text for text, _ in chosen], torch.tensor([label for _, label in chosen], dtype=torch.int64)
        )

    def identity(self, split: Split) -> dict[str, Any]:
        """Return everything that determines the texts of one split.

        Raises:
            UserError: an unknown split, or a package is missing.
        """
        check_split(split)
        return {
            "texts": self.subject,
            "split": split,
            # The counts of all splits, because each is a part of the same sequence.
            **{name: getattr(self, name) for name in SPLITS},
            "seed": self.seed,
            "version": _VERSION,
            # Its random numbers choose the texts.
            "torch": version("torch"),
            "subject": find_subject(self.subject).identity(),
        }

    def _texts_of_classes(self) -> list[list[str]]:
        """Return the texts of each class that are used: equally many, or all of a class that has fewer than that."""
        subject = find_subject(self.subject)
        total = sum(getattr(self, split) for split in SPLITS)
        share = math.ceil(total / len(subject.classes))
        # Ask for more than a share only if a class lacks some: writing texts takes time.
        for count in (share, total):
            texts = subject.candidates(count, Draws("texts", self.subject, self.seed))
            available = [len(one) for one in texts]
            if sum(available) >= total:
                return [one[:quota] for one, quota in zip(texts, _quotas(available, total), strict=True)]
        raise UserError(
            f"Texts of {self.subject!r}: expected train + validation + test to be at most {sum(available)}, the number "
            f"of texts that exist, got {total}. Reduce train, validation or test."
        )


def _quotas(available: Sequence[int], total: int) -> list[int]:
    """Divide a total among classes as evenly as the numbers available allow."""
    quotas = [0] * len(available)
    left = total
    for position, label in enumerate(sorted(range(len(available)), key=lambda one: available[one])):
        quotas[label] = min(available[label], left // (len(available) - position))
        left -= quotas[label]
    return quotas


def _in_turn(texts: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Spread the texts of each class evenly over one sequence of (text, label)."""
    placed = [
        ((index + 0.5) / len(of_class), label, text)
        for label, of_class in enumerate(texts)
        for index, text in enumerate(of_class)
    ]
    return [(text, label) for _, label, text in sorted(placed)]
