"""Describe the layout of a dataset: its id, columns, splits and spellings of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergeability.checks import Count, Seed, Share
from mergeability.data.inputs import Split
from mergeability.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Describe where a dataset stores a task's images and labels.

    Attributes:
        id: id of the dataset on the Hugging Face Hub; None for a copy on disk or a folder of images.
        config: name of the dataset's configuration, if it has several.
        revision: commit or tag of the dataset's repository; the newest when None.
        image: column of images; of several names, the first that exists.
        label: column of labels; of several names, the first that exists.
        train: split to train on; several splits are joined.
        test: split to test on. Only the splits named here are read.
        validation: split of the dataset to take validation images from; if it is None, or a copy lacks it, they are
            drawn from `train`.
        validation_share: share of `train` to draw, in [0, 1].
        validation_most: largest number of validation images, at least 1, from whichever split.
        validation_seed: seed of the draw.
        spellings: class name → its names in the dataset, if these are not the same after cleaning.
        transpose: whether rows and columns are swapped in the image files.
        max_corrupt: largest share of undecodable images, in [0, 1]; these images are left out.

    Raises:
        UserError: a share is outside [0, 1], or `validation_most` below 1.

    Examples:
        >>> from mergeability.data import Layout
        >>> layout = Layout(id="ylecun/mnist", validation_share=0.1, validation_most=5000)
        >>> layout.splits("train"), layout.splits("validation"), layout.held_out(60_000, own=False)
        (['train'], [], 5000)
    """

    id: str | None = None
    config: str | None = None
    revision: str | None = None
    image: str | Sequence[str] = "image"
    label: str | Sequence[str] = "label"
    train: str | Sequence[str] = "train"
    test: str = "test"
    validation: str | None = None
    validation_share: Share = 0.1
    validation_most: Count = 5000
    validation_seed: Seed = 0
    spellings: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    transpose: bool = False
    max_corrupt: Share = 0.001

    def __post_init__(self) -> None:
        called = f"Dataset {self.id}" if self.id else "A dataset"
        for name in ("validation_share", "max_corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"{called}: expected {name} to be a share in [0, 1], got {getattr(self, name)}."
                )
        if self.validation_most < 1:
            raise UserError(
                f"{called}: expected validation_most to be at least 1, got {self.validation_most}."
            )

    def splits(self, split: Split) -> list[str]:
        """Return the dataset splits that form a split of the task; empty if the split is drawn from `train`."""
        if split == "train":
            return several(self.train)
        return [self.test] if split == "test" else several(self.validation)

    def held_out(self, count: int, own: bool) -> int:
        """Return how many of `count` images are used for validation.

        `own` is true if the dataset has a separate validation split, from which the images are then taken.
        """
        wanted = count if own else round(self.validation_share * count)
        return min(wanted, self.validation_most)


def several(value: str | Sequence[str] | None) -> list[str]:
    """Convert a name, a list of names or None to a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
