"""What flows into the loop: batches of images in an order that depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvc_core import HybridModel

from .data import (
    Batch,
    Data,
    DataSettings,
    Transforms,
    class_weights,
    evaluation_batches,
    steps_in_epoch,
    training_batches,
)
from .devices import Devices
from .phases import Phase

__all__ = ["Feed"]

_MOST = 256
"""Images of a batch of evaluation, at most."""


class Feed:
    """Images of a training, and what runs the model on them.

    Args:
        data: images to train on and held out.
        settings: the section `data`.
        transforms: of images to train on.
        devices: of this process.
        batch_size: images of a step, of all processes together.
        seed: of the training.
        workers: processes that read images.
        layout: of images in memory.
    """

    def __init__(
        self,
        data: Data,
        settings: DataSettings,
        transforms: Transforms,
        *,
        devices: Devices,
        batch_size: int,
        seed: int,
        workers: int = 0,
        layout: str = "contiguous",
    ) -> None:
        self.data, self.settings, self.transforms = data, settings, transforms
        self.devices, self.batch_size, self.seed, self.workers = devices, batch_size, seed, workers
        self.labels = data.labels
        self.num_images = len(data.train)
        self.class_weights: Tensor | None = None
        if settings.balance == "loss":
            self.class_weights = class_weights(data.train, len(data.classes))
        self._sized, self._layout = transforms, layout
        self._model: HybridModel | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_in_epoch(self.num_images, self.batch_size)

    @property
    def _held_out_batch(self) -> int:
        return min(self.batch_size, _MOST)

    @property
    def held_out_steps(self) -> int:
        """Batches of this process in an evaluation."""
        mine = len(range(self.devices.rank, len(self.data.val), self.devices.world))
        return -(-mine // self._held_out_batch)

    @property
    def common_steps(self) -> int:
        """Batches of an evaluation that every process has."""
        return -(-(len(self.data.val) // self.devices.world) // self._held_out_batch)

    @property
    def most_steps(self) -> int:
        """Batches of an evaluation that the first process has, which no other has more of."""
        return -(-len(range(0, len(self.data.val), self.devices.world)) // self._held_out_batch)

    def any_image(self) -> Tensor:
        """Return a held-out image, for a process that has none left."""
        one = self.data.val.take(np.arange(1))
        batches = evaluation_batches(one, self.transforms, batch_size=1)
        return next(batches).images

    def begin(self, model: HybridModel, phase: Phase) -> None:
        """Begin a phase."""
        self._model = model
        self._sized = self.transforms if phase.size is None else self.transforms.resized(phase.size)

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield this process's batches of an epoch."""
        return training_batches(
            self.data.train,
            self._sized,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            first_step=first_step,
            rank=self.devices.rank,
            world=self.devices.world,
            workers=self.workers,
            balance=self.settings.balance,
            mixup=self.settings.mixup,
            cutmix=self.settings.cutmix,
            num_classes=len(self.data.classes),
            device=self.devices.device,
        )

    def batches_again(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch once more, for the weights that are evaluated."""
        return self.training_batches(epoch, 0)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Yield this process's batches of the held-out images."""
        return evaluation_batches(
            self.data.val,
            self.transforms,
            batch_size=self._held_out_batch,
            rank=self.devices.rank,
            world=self.devices.world,
            workers=self.workers,
            device=self.devices.device,
        )

    def ready(self, images: Tensor) -> Tensor:
        """Return images as the model takes them."""
        images = images.to(self.devices.device, self.devices.dtype)
        if self._layout == "channels_last" and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def runs(self, model: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """Return what maps the images of a batch to logits: the model, wrapped or not."""
        return model

    def after_backward(self, learning: Iterable[nn.Parameter]) -> None:
        """Do what is left when the gradients of a step are there."""
