"""Batches of one task's images for Lightning."""

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mergeability.data.tasks import Images


class EpochShuffle(Sampler[list[int]]):
    """Batches of shuffled indices whose order depends on (seed, epoch) alone.

    So a run resumed after epoch 3 sees the same batches in epoch 4 as one that was never stopped. Lightning
    calls `set_epoch` before each epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the order is drawn with the first batch: when it resumes, Lightning makes the
        # iterator before it says which epoch it is.
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        for batch in torch.randperm(self.size, generator=generator).split(self.batch_size):
            yield batch.tolist()

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)


class _Batches(Dataset):
    """Whole batches by index list: for images in memory, far cheaper than collating single items."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images.images[indices], self.images.labels[indices]


class TaskDataModule(pl.LightningDataModule):
    """Serve uint8 images and labels; the model normalises them on its own device."""

    def __init__(self, train: Images, validation: Images, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = train, validation, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        """Serve the training split, shuffled anew each epoch."""
        order = EpochShuffle(len(self.train), self.batch_size, self.seed)
        return DataLoader(_Batches(self.train), sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Serve the validation split in its own order."""
        batches = torch.arange(len(self.validation)).split(256)
        order = [batch.tolist() for batch in batches]
        return DataLoader(_Batches(self.validation), sampler=order, batch_size=None)
