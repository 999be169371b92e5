"""How a dataset is laid out: its id, its columns, its splits, and how its classes are spelled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mergeability.checks import Count, Seed, Share
from mergeability.data.inputs import Split
from mergeability.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Where a task's images and labels are in a dataset.

    Attributes:
        id: of the dataset on the Hugging Face Hub; a copy on disk or a folder of images needs none.
        config: its configuration there, where it has several.
        revision: of its repository: a commit or a tag; the newest when None.
        image: the column of images; of several names the first that exists.
        label: the column of labels; of several names the first that exists.
        train: the split to learn from; several are joined.
        test: the split to be judged on. No other split is read but these.
        validation: a split of the dataset's own to hold out; where it is None, or a copy lacks it, a share of `train`.
        validation_share: that share, in [0, 1].
        validation_most: images held out at most, whatever split they come from.
        validation_seed: of the draw of held-out images.
        spellings: class name → what the dataset calls it, where cleaning does not lead from one to the other.
        transpose: rows and columns of the files are swapped.
        max_corrupt: the share of images, in [0, 1], that may fail to decode and are left out.

    Raises:
        UserError: a share outside [0, 1], or fewer than one held-out image.
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
        """Name the dataset's own splits that a split is made of; none where it is drawn from `train`."""
        if split == "train":
            return several(self.train)
        return [self.test] if split == "test" else several(self.validation)

    def held_out(self, count: int, own: bool) -> int:
        """Say how many of a split's images are for validation: of `train`, or of a split of their `own`."""
        wanted = count if own else round(self.validation_share * count)
        return min(wanted, self.validation_most)


def several(value: str | Sequence[str] | None) -> list[str]:
    """Write one name, several or none as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
