"""Batches of images: which images, in which order, mixed or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ..errors import DataError
from .order import epoch_order, own_generator, seed_of, shares
from .preparing import Transforms
from .samples import Samples

__all__ = [
    "Batch", "check_shares", "class_weights", "evaluation_batches", "prepared", "step_totals",
    "steps_in_epoch", "training_batches", "training_indices",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one step, on one rank.

    Args:
        images: float32 [N, C, H, W].
        targets: int64 [N]; float32 [N, K] where images have many labels, or were mixed.
        indices: of the images in the samples, int64 [N].
        total: images of this step on all ranks together.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    total: int


def steps_in_epoch(num: int, batch_size: int) -> int:
    """Return the number of steps of an epoch.

    Args:
        num: images.
        batch_size: images of a step, on all ranks together, at most.
    """
    return -(-num // batch_size)


def check_shares(num: int, batch_size: int, world: int) -> None:
    """Refuse steps of fewer images than there are processes.

    Args:
        num: images of an epoch.
        batch_size: images of a step, on all ranks together, at most.
        world: number of processes.

    Raises:
        DataError: a process would have no image in some step.
    """
    if num and num // steps_in_epoch(num, batch_size) < world:
        raise DataError(
            f"{num} images in batches of {batch_size} on {world} processes: a step would have "
            "fewer images than processes; use larger batches, or fewer processes"
        )


def training_indices(
    samples: Samples,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    balance: str = "none",
) -> list[np.ndarray]:
    """Return the images of each step of an epoch on one rank, from `first_step` on.

    Every image comes once in an epoch: batches are as many as are needed, and differ in size by one
    at most, so none is small, and nothing is dropped. Which images make up a step does not depend
    on the number of ranks: each takes `rank::world` of them.

    Raises:
        DataError: a step would have fewer images than there are ranks.
    """
    weights = _draws(samples) if balance == "sample" else None
    order = epoch_order(len(samples), seed=seed, epoch=epoch, weights=weights)
    check_shares(len(samples), batch_size, world)
    parts = shares(len(samples), steps_in_epoch(len(samples), batch_size))
    return [order[start:end][rank::world] for start, end in parts[first_step:]]


def training_batches(
    samples: Samples,
    transforms: Transforms,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    balance: str = "none",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """Yield the batches of an epoch, from any of its steps on.

    All of it is a function of the arguments, without `workers`: the order of (seed, epoch), each
    image's variation of (seed, epoch, index), and what is mixed of (seed, epoch, step, rank). The
    generators of torch, numpy and Python are left as they are.

    Args:
        samples: the images.
        transforms: prepare them.
        batch_size: images of a step on all ranks together, at most.
        seed: of the run.
        epoch: counted from 0 over the whole run.
        first_step: of the epoch, counted from 0.
        rank: of this process.
        world: number of processes.
        workers: processes that read images; 0 for none but this one.
        balance: "sample" draws images of rare classes as often as those of frequent ones, with
            replacement.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        num_classes: of the targets; needed to mix.
        device: where the batches are wanted; images travel as 8 bits.

    Raises:
        DataError: an image cannot be read, or a step would have fewer images than there are ranks.
    """
    steps = training_indices(
        samples, batch_size=batch_size, seed=seed, epoch=epoch, first_step=first_step, rank=rank,
        world=world, balance=balance,
    )  # fmt: skip
    totals = step_totals(samples, batch_size)[first_step:]
    mixer = _mixer(mixup, cutmix, num_classes)
    loaded = prepared(samples, transforms, steps, workers, seed, epoch, device)
    for step, (pixels, indices) in enumerate(loaded, first_step):
        images = transforms.normalize(pixels, device)
        targets = _targets(samples, indices).to(images.device, non_blocking=True)
        if mixer is not None:
            with own_generator() as generator:
                generator.manual_seed(seed_of("mix", seed, epoch, step, rank))
                images, targets = mixer(images, targets)
        total = totals[step - first_step]
        yield Batch(images=images, targets=targets, indices=indices, total=total)


def evaluation_batches(
    samples: Samples,
    transforms: Transforms,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """Yield every image once, in order: on each rank `rank::world`, without padding.

    Args:
        samples: the images.
        transforms: prepare them; nothing is random.
        batch_size: images of a batch on this rank, at most.
        rank: of this process.
        world: number of processes.
        workers: processes that read images; 0 for none but this one.
        device: where the batches are wanted.

    Raises:
        DataError: an image cannot be read.
    """
    transforms = transforms.for_evaluation()
    mine = np.arange(rank, len(samples), world)
    steps = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    for pixels, indices in prepared(samples, transforms, steps, workers, 0, 0, device):
        images = transforms.normalize(pixels, device)
        targets = _targets(samples, indices).to(images.device, non_blocking=True)
        yield Batch(images=images, targets=targets, indices=indices, total=len(indices))


def class_weights(samples: Samples, num_classes: int) -> Tensor:
    """Return by how much each class's loss has to be multiplied so that all classes count the same,
    float32 [K]: N / (K * images of the class), 1 on average over the images.

    Of images with many labels it is what a class's positives have to be multiplied by: images
    without the class by those with it, which is `pos_weight` of `BCEWithLogitsLoss`.

    Raises:
        DataError: a class has no image.
    """
    counts = _counts(samples, num_classes)
    if not counts.all():
        raise DataError(f"class {int(np.argmin(counts))} has no image, so nothing can balance it")
    total = len(samples)
    many = samples.targets.ndim == 2
    found = (total - counts) / counts if many else total / (num_classes * counts)
    return torch.from_numpy(found.astype(np.float32))


def _counts(samples: Samples, num_classes: int) -> np.ndarray:
    if samples.targets.ndim == 2:
        return samples.targets.sum(0)
    return np.bincount(samples.targets, minlength=num_classes)


def _draws(samples: Samples) -> np.ndarray:
    """Return how often each image is drawn: inversely to the images of its class."""
    return 1.0 / np.bincount(samples.targets)[samples.targets]


def step_totals(samples: Samples, batch_size: int) -> list[int]:
    """Return how many images each step of an epoch has, on all ranks together."""
    parts = shares(len(samples), steps_in_epoch(len(samples), batch_size))
    return [end - start for start, end in parts]


def _targets(samples: Samples, indices: Tensor) -> Tensor:
    return torch.from_numpy(samples.targets[indices.numpy()])


def _mixer(mixup: float, cutmix: float, num_classes: int | None) -> Any:
    found: list[Any] = []
    if mixup:
        found.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        found.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(found) if len(found) == 2 else found[0] if found else None


class _Steps(Dataset[tuple[Tensor, Tensor]]):
    """The images of each step, as 8 bits; what a worker process holds."""

    def __init__(
        self, samples: Samples, transforms: Transforms, steps: Sequence[np.ndarray], seed: int,
        epoch: int,
    ) -> None:  # fmt: skip
        self.samples, self.transforms, self.steps = samples, transforms, steps
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self.steps[step]
        images = [
            self.transforms.pixels(
                self.samples.read(int(index)), seed=self.seed, epoch=self.epoch, index=int(index)
            )
            for index in indices
        ]
        return torch.stack(images), torch.from_numpy(np.ascontiguousarray(indices))


def prepared(
    samples: Samples, transforms: Transforms, steps: list[np.ndarray], workers: int, seed: int,
    epoch: int, device: torch.device | str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield pixels and indices of each step, read by as many processes, for a device."""
    dataset = _Steps(samples, transforms, steps, seed, epoch)
    if not workers or not steps:
        yield from (dataset[step] for step in range(len(steps)))
        return
    # with a generator of its own, or it would draw from the user's
    generator = torch.Generator().manual_seed(0)
    yield from DataLoader(
        dataset,
        batch_size=None,
        num_workers=min(workers, len(steps)),
        generator=generator,
        pin_memory=device is not None and torch.device(device).type == "cuda",
    )
