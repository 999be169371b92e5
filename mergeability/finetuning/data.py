"""Batches of one task's samples for Lightning, on one device or distributed over several."""

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mergeability.data.inputs import Samples


class EpochShuffle(Sampler[list[int]]):
    """Batches of shuffled indices in an order that depends only on (seed, epoch).

    So a run resumed after epoch 3 uses the same batches in epoch 4 as an uninterrupted run. Lightning
    calls `set_epoch` before each epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the samples."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that the order is drawn with the first batch, because on resuming Lightning creates the
        # iterator before it sets the epoch.
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        for batch in torch.randperm(self.size, generator=generator).split(self.batch_size):
            yield batch.tolist()

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)


class Shard(Sampler[list[int]]):
    """Every `count`-th batch of a sampler, from the `index`-th on.

    The order is that of the sampler, so it depends on seed and epoch as with one device. If the batches do not divide
    evenly, the first ones are repeated, so that every device takes the same number of steps.
    """

    def __init__(self, sampler: EpochShuffle, index: int, count: int) -> None:
        self.sampler, self.index, self.count = sampler, index, count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the samples."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.sampler)
        for step in range(len(self)):
            yield batches[(step * self.count + self.index) % len(batches)]

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.count)


class _Batches(Dataset):
    """Whole batches by index list: for samples in memory, far cheaper than collating single items."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.samples.rows[indices], self.samples.labels[indices]


class TaskDataModule(pl.LightningDataModule):
    """Provide rows of samples and labels; the model preprocesses the samples on its device.

    On several devices each trains on whole batches of its own, and validates on all samples. Lightning's own way wraps
    the sampler and does not pass the epoch on, so that every epoch has the same batches.
    """

    def __init__(self, train: Samples, validation: Samples, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size, self.seed = train, validation, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        """Return this device's batches of the training split, reshuffled every epoch."""
        order: EpochShuffle | Shard = EpochShuffle(len(self.train), self.batch_size, self.seed)
        if self.trainer is not None and self.trainer.world_size > 1:
            order = Shard(order, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(_Batches(self.train), sampler=order, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Return batches of the validation split in its original order; all devices receive the same batches."""
        batches = torch.arange(len(self.validation)).split(256)
        order = [batch.tolist() for batch in batches]
        return DataLoader(_Batches(self.validation), sampler=order, batch_size=None)
