"""Batches of one task's images for several devices: each takes whole batches of its own."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Sampler


class Shard(Sampler):
    """Every `count`-th batch of a sampler, from the `index`-th on.

    The order is the sampler's own, so it depends on seed and epoch as with one device. Where the batches do not divide
    evenly, the first ones are taken once more: every device takes the same number of steps.
    """

    def __init__(self, sampler: Any, index: int, count: int) -> None:
        self.sampler, self.index, self.count = sampler, index, count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        batches = list(self.sampler)
        for step in range(len(self)):
            yield batches[(step * self.count + self.index) % len(batches)]

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.count)


class SharedData(pl.LightningDataModule):
    """Deal the training batches of another data module to the devices; each validates on all images.

    Lightning's own way wraps the sampler and does not pass the epoch on, so that every epoch has the same batches.
    """

    def __init__(self, data: pl.LightningDataModule) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader:
        """Serve this device's batches."""
        loader = self.data.train_dataloader()
        count = 1 if self.trainer is None else self.trainer.world_size
        if count == 1:
            return loader
        assert self.trainer is not None
        return DataLoader(
            loader.dataset,
            sampler=Shard(loader.sampler, self.trainer.global_rank, count),
            batch_size=None,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.persistent_workers,
            prefetch_factor=loader.prefetch_factor,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )

    def val_dataloader(self) -> DataLoader:
        """Serve the validation split, the same to every device."""
        return self.data.val_dataloader()
