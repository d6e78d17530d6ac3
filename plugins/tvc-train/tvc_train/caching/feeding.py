"""A feed that gives features in the place of images, where what is below them is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvc_core import HybridModel

from ..data import Batch, Samples, Transforms
from ..data.batches import prepared, step_totals, training_indices
from ..errors import TrainingError
from ..faults import StoppedError, Stopping
from ..feeding import Feed
from ..modes import modes_kept
from ..phases import Phase
from .checking import COMPILED, check_devices, refused
from .cutting import CutError, Halves, cut
from .keys import content_digest, facts_of, key_of, weights_digest
from .storing import FeatureStore, default_folder

__all__ = ["CachedFeed"]

_CHUNK = 64
"""Images that are computed at once: not the batch size, which would change the bits."""


class CachedFeed(Feed):
    """A feed that computes what is frozen once for each image and view, and keeps the result.

    In a phase in which all learns, it gives images like any other feed. Several processes of one
    machine compute a share each, and have one copy; what they compute is the same for any number.

    Args:
        folder: where features are kept; by default `~/.cache/tvc/features`.
        stopping: asked before each chunk of images.
        note: is told what was cached.

    Raises:
        TrainingError: there are several machines, or the model is in shards.
    """

    def __init__(
        self,
        *args: Any,
        folder: Path | None = None,
        stopping: Stopping | None = None,
        note: Callable[[str], object] = lambda text: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_devices(self.devices)
        most = int(self.settings.max_cache * (1 << 30))
        self.store = FeatureStore(folder or default_folder(), most=most)
        self.stopping, self.note = stopping or Stopping(), note
        self.views = self.settings.views or 1
        self._halves: Halves | None = None
        self._tables: dict[str, Tensor] = {}
        self._weights, self._state = "", ()
        self._given = False  # whether the last batch has features
        self._contents: dict[int, str] = {}

    def begin(self, model: HybridModel, phase: Phase) -> None:
        """Begin a phase: cut the model, and find or compute the features of all images.

        Raises:
            TrainingError: something is frozen, and yet features would be wrong; or they cannot be
                kept.
            StoppedError: a signal asked for it; no part of the features is kept.
        """
        super().begin(model, phase)
        self._halves, self._tables, self._given = None, {}, False
        example = self._images(self.data.train, self._sized, np.arange(min(2, self.num_images)))
        try:
            with modes_kept(model):
                model.train()
                halves = cut(model, example, self.devices.autocast)
                drawn = self._table(self.data.train, self._sized, halves, self.views)
                held = self.transforms.for_evaluation()
                self._tables = {"train": drawn, "val": self._table(self.data.val, held, halves, 1)}
        except CutError as error:
            if not error.all_learns:
                raise refused(phase, error) from error
            self.note(f"phase {phase.title!r} caches nothing: {error}")
            return
        self._halves = halves
        self._state, self._weights = _state_of(halves.below), weights_digest(halves.below)
        size = sum(table.nbytes for table in self._tables.values())
        self.note(
            f"phase {phase.title!r} trains what is above {halves.where} on cached features of "
            f"{'x'.join(map(str, halves.shape))}: {size / 1e6:,.1f} MB"
        )

    def training_batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; of features, view `epoch % views` of each image."""
        if self._halves is None:
            yield from super().training_batches(epoch, first_step)
            return
        if not self._holds():
            raise TrainingError(
                f"data.cache: weights below {self._halves.where} have changed since their features "
                "were computed, though they are frozen"
            )
        steps = training_indices(
            self.data.train,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            first_step=first_step,
            rank=self.devices.rank,
            world=self.devices.world,
            balance=self.settings.balance,
        )
        totals = step_totals(self.data.train, self.batch_size)[first_step:]
        start = (epoch % self.views) * self.num_images
        for indices, total in zip(steps, totals, strict=True):
            yield self._batch("train", self.data.train, indices, start, total)

    def batches_again(self, epoch: int) -> Iterator[Batch]:
        """Yield such batches once more; of features, if these are still right."""
        self._given = False
        if self._holds():
            yield from self.training_batches(epoch, 0)
        else:
            yield from super().training_batches(epoch, 0)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Yield the batches of the held-out images; of features, if these are still right."""
        self._given = False
        if self._halves is None or not self._holds():
            yield from super().evaluation_batches()
            return
        mine = np.arange(self.devices.rank, len(self.data.val), self.devices.world)
        for start in range(0, len(mine), self._held_out_batch):
            indices = mine[start : start + self._held_out_batch]
            yield self._batch("val", self.data.val, indices, 0, len(indices))

    def runs(self, model: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """Return what maps the last batch to logits: the model, or what of it is above the cut.

        Raises:
            TrainingError: it is a model that was compiled.
        """
        halves, own = self._halves, self._model
        if not self._given or halves is None:
            return model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        if model is not own or own is None:
            raise TrainingError(COMPILED)
        return halves.above[own.training]

    def after_backward(self, learning: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes, which the wrapper did not see."""
        if self._given:
            gradients = (each.grad for each in learning)
            self.devices.average_(each for each in gradients if each is not None)

    def _batch(
        self, part: str, samples: Samples, indices: np.ndarray, start: int, total: int
    ) -> Batch:
        rows = torch.from_numpy(np.ascontiguousarray(indices))
        device = self.devices.device
        targets = torch.from_numpy(samples.targets[indices]).to(device)
        features = self._tables[part][rows + start].to(device)
        self._given = True
        return Batch(images=features, targets=targets, indices=rows, total=total)

    # -- computing ---------------------------------------------------------------------------------

    def _holds(self) -> bool:
        """Return whether the weights below the cut are those of the features."""
        # averaged weights are put into the model and taken out again, which moves the counters of
        # all tensors, and changes no value below
        halves = self._halves
        if halves is None:
            return False
        state = _state_of(halves.below)
        if state != self._state and weights_digest(halves.below) != self._weights:
            return False
        self._state = state
        return True

    def _table(
        self, samples: Samples, transforms: Transforms, halves: Halves, views: int
    ) -> Tensor:
        """Return features [views * N, ...], which may have been computed before."""
        if id(samples) not in self._contents:
            self._contents[id(samples)] = content_digest(samples)
        facts = facts_of(
            halves.below,
            transforms=transforms.to_mapping(),
            data=self._contents[id(samples)],
            views=views,
            seed=self.seed if transforms.is_random else None,
            device=self._device_name(),
            numbers=[str(self.devices.dtype), str(halves.dtype), self._layout],
        )
        key = key_of(facts)
        if any(each != key for each in self.devices.everyone(key)):
            raise TrainingError(
                "data.cache: the processes would compute other features each: weights, images, "
                "versions or processors differ between them"
            )
        found = self.store.find(key)
        if all(self.devices.everyone(found is not None)):
            assert found is not None
            return found
        if not len(samples):
            return torch.empty(0, *halves.shape, dtype=halves.dtype)
        first = self._below(halves, self._images(samples, transforms, np.arange(1)))
        shape = (views * len(samples), *first.shape[1:])
        parts = self._computed(samples, transforms, halves, views)
        return self._built(key, facts, parts, shape, halves.dtype)

    def _built(
        self, key: str, facts: dict[str, Any], parts: Iterator[Tensor], shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        """Keep features that all processes compute: the first one writes them."""
        found, problem = None, ""
        if self.devices.first:
            try:
                found = self.store.build(key, facts, parts, shape, dtype)
            except StoppedError:
                raise  # in all of them
            except TrainingError as error:
                problem = str(error)
            self._goes_on(building=False)
        else:
            for _ in parts:
                pass
        if problem := self.devices.agree(problem):
            raise TrainingError(problem)
        found = found if found is not None else self.store.find(key)
        if found is None:
            raise TrainingError(f"data.cache: {self.store.folder / key} is not there any more")
        return found

    def _computed(
        self, samples: Samples, transforms: Transforms, halves: Halves, views: int
    ) -> Iterator[Tensor]:
        """Yield the features of all images, and of the next view. The processes take turns."""
        rank, world, device = self.devices.rank, self.devices.world, self.devices.device
        ends = range(0, len(samples), _CHUNK)
        steps = [np.arange(start, min(start + _CHUNK, len(samples))) for start in ends]
        for view in range(views):
            own = steps[rank::world]
            mine = prepared(samples, transforms, own, self.workers, self.seed, view, device)
            for _ in range(0, len(steps), world):
                if not self._goes_on():
                    return
                features = None
                if (loaded := next(mine, None)) is not None:
                    images = transforms.normalize(loaded[0], device)
                    features = self._below(halves, self.ready(images))
                yield from (each for each in self.devices.everyone(features) if each is not None)
        if not self.devices.first:
            self._goes_on()  # until all is written

    def _goes_on(self, *, building: bool = True) -> bool:
        """Return whether the first process still builds, which all of them ask together.

        Raises:
            StoppedError: one was asked to end before it was done.
        """
        done = self.devices.first and not building
        ended, asked = self.devices.total(float(done), float(self.stopping.asked))
        if asked and not ended:
            raise StoppedError(
                "SIGTERM was received while features were computed. None of them are kept; the "
                "training goes on from its last checkpoint"
            )
        return not ended

    @torch.no_grad()
    def _below(self, halves: Halves, images: Tensor) -> Tensor:
        with self.devices.autocast():
            features: Tensor = halves.below(images)
        return features

    def _images(self, samples: Samples, transforms: Transforms, indices: np.ndarray) -> Tensor:
        pixels, _ = next(iter(prepared(samples, transforms, [indices], 0, self.seed, 0)))
        return self.ready(transforms.normalize(pixels, self.devices.device))

    def _device_name(self) -> str:
        device = self.devices.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _state_of(module: nn.Module) -> tuple[Any, ...]:
    """Return something that changes whenever a tensor of a module is written to or exchanged."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((id(each), each.data_ptr(), each._version) for each in tensors)
