"""Match a dataset's spellings of class names with the class names of a task."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from mergeability.checks import clean_name
from mergeability.data.real.image_files import shown
from mergeability.errors import UserError

# SUN397 stores classes in folders named after their first letter: `/a/abbey`.
_LETTER_FOLDER = re.compile(r"^/?[a-z]/")
# Split camel case such as `AnnualCrop`.
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def cleaned(name: str) -> str:
    """Convert a dataset's class name to words: `a/apartment_building/outdoor` becomes `apartment building outdoor`."""
    return " ".join(re.split(r"[\s_/]+", _LETTER_FOLDER.sub("", name.strip()).strip("/")))


def _compared(name: str) -> str:
    """Normalise a name for comparison: ignore case, hyphens, apostrophes and forms of accents."""
    composed = unicodedata.normalize("NFC", cleaned(name))
    words = _CAMEL.sub(" ", composed).casefold().replace("-", " ").replace("'", "")
    return " ".join(words.replace("/", " ").split())


class ClassNames:
    """Hold the classes of a task in label order, and how datasets spell the class names.

    Args:
        task: its name, for messages.
        names: class names in prompts, in label order.
        spellings: name → names in datasets that do not match after normalisation.

    Raises:
        UserError: spellings are given for an unknown class, or two classes share a spelling.
    """

    def __init__(
        self, task: str, names: Sequence[str], spellings: Mapping[str, str | Sequence[str]] | None = None
    ) -> None:
        what = f"each of the class names of task {task!r}"
        self.task, self.names = task, [clean_name(name, what) for name in names]
        spellings = {clean_name(name, what): others for name, others in (spellings or {}).items()}
        unknown = sorted(set(spellings) - set(self.names))
        if unknown:
            raise UserError(
                f"Task {task!r}: dataset.spellings contains {unknown}, which are not among the classes."
                " Correct or remove them."
            )
        self._labels: dict[str, int] = {}
        for label, name in enumerate(self.names):
            others = spellings.get(name, [])
            for spelling in [name, *([others] if isinstance(others, str) else others)]:
                taken = self._labels.setdefault(_compared(spelling), label)
                if taken != label:
                    raise UserError(
                        f"Task {task!r}: the classes {self.names[taken]!r} and {name!r} have the same spelling "
                        f"{spelling!r} (case, hyphens and apostrophes are ignored). Rename one of the classes, or "
                        "correct dataset.spellings."
                    )

    def label(self, name: str) -> int | None:
        """Return the label of a class from one of its spellings or its number; None if the class is unknown."""
        found = self._labels.get(_compared(name))
        if found is None and name.isdecimal() and int(name) < len(self.names):
            return int(name)
        return found

    def labels(self, names: Iterable[str], where: str) -> dict[str, int]:
        """Return a mapping from the class names of a dataset to their labels.

        Raises:
            UserError: a name is not among the task's classes, or two names denote the same class.
        """
        found = {name: self.label(name) for name in names}
        unknown = [name for name, label in found.items() if label is None]
        if unknown:
            raise UserError(
                f"Task {self.task!r}: {where} has {len(unknown)} classes that are not listed in class_names, such as "
                f"'{shown(unknown[0])}'; class_names lists {', '.join(self.names[:3])}, …. Rename the unlisted "
                "classes, or add their spellings under dataset.spellings."
            )
        labels: dict[str, int] = {}
        by_label: dict[int, str] = {}
        for name, label in found.items():
            assert label is not None
            if label in by_label:
                one, other = by_label[label], name
                composed = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
                raise UserError(
                    f"Task {self.task!r}: in {where}, {one!r} and {other!r} both denote the class {self.names[label]!r}"
                    + (", with accents in two Unicode forms" if composed else "")
                    + ". Keep only one of these two names."
                )
            labels[name] = label
            by_label[label] = name
        return labels

    def check_order(self, found: Sequence[str], where: str) -> None:
        """Check that the label feature of a dataset lists the same classes as the task, in the same order.

        A feature that only numbers its classes, `0`, `1`, `2`, …, has them if the numbers are in order.

        Raises:
            UserError: the number or the order of classes differs; the message names the first difference.
        """
        if len(found) != len(self.names):
            raise UserError(
                f"Task {self.task!r}: expected {len(self.names)} classes, but {where} has {len(found)}. Set"
                " the right dataset, or change class_names."
            )
        for label, name in enumerate(found):
            if self.label(str(name)) != label:
                raise UserError(
                    f"Task {self.task!r}: expected class {label} to be {self.names[label]!r}, but {where} has"
                    f" {str(name)!r} at this position. Reorder class_names as in the dataset, or add the"
                    " spelling under dataset.spellings."
                )
