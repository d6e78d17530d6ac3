"""What thawed normalization layers do: keep their running statistics, train them, or train them and
estimate them again before they are used.

Statistics of few images are noise, and with them a network computes something else in training than
in evaluation: so they are fixed by default under 64 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from tvc_core import HybridModel

__all__ = ["Normalization", "default_normalization"]

_FEW = 64
"""Images of a process, below which statistics are fixed."""

_ENOUGH = 100
"""Batches from which statistics are estimated again (Wu and Johnson 2021, arXiv:2105.07576, section
3.1: 1,000 to 10,000 images are enough).
"""

_BatchNorm = nn.modules.batchnorm._BatchNorm


def default_normalization(pretrained: bool, images: int) -> str:
    """Return what thawed normalizations do where a recipe does not say it.

    Args:
        pretrained: the backbone has weights, and so statistics that mean something.
        images: of a part of a step, in one process.
    """
    return "fixed" if pretrained and images < _FEW else "train"


class Normalization:
    """The normalization layers with running statistics of a model, in one phase.

    Args:
        model: the hybrid.
        mode: "fixed", "train" or "reestimate".
    """

    def __init__(self, model: HybridModel, mode: str) -> None:
        self.model, self.mode = model, mode
        new = {path for record in model.patch_records for path in (*record.new, *record.paths)}
        self._backbone = [
            module
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and not any(f"{path}.".startswith(f"{each}.") for each in new)
        ]

    def training(self) -> None:
        """Put the model into training mode, and what is fixed into evaluation mode. Layers inside
        of new blocks have no statistics yet, and always train.
        """
        self.model.train()
        if self.mode == "fixed":
            for module in self._backbone:
                module.eval()

    def moving(self) -> list[_BatchNorm]:
        """Return the layers whose statistics move, in training mode."""
        return [
            module
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]

    def statistics(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the statistics that move, which differ between replicas, with their names."""
        moving = {id(module) for module in self.moving()}
        for path, module in self.model.named_modules():
            for name in ("running_mean", "running_var") if id(module) in moving else ():
                if (tensor := getattr(module, name)) is not None:
                    yield f"{path}.{name}", tensor

    @torch.no_grad()
    def estimate(self, batches: Iterable[Tensor], run: Callable[[Tensor], object]) -> None:
        """Put the mean of the statistics of batches in the place of what moves.

        Args:
            batches: images [N, C, H, W]; the first 100 are used.
            run: the model.
        """
        self.training()
        moving = self.moving()
        if not moving:
            return
        before = [module.momentum for module in moving]
        for module in moving:
            module.reset_running_stats()
            module.momentum = None  # the plain mean
        try:
            for number, images in enumerate(batches):
                if number >= _ENOUGH:
                    break
                run(images)
        finally:
            for module, momentum in zip(moving, before, strict=True):
                module.momentum = momentum

    @torch.no_grad()
    def gap(self, loss: Callable[[], Tensor]) -> tuple[float, float] | None:
        """Return the loss of the same images with statistics of the batch and with running ones;
        None where no statistics move. Nothing of the model has changed afterwards.

        Args:
            loss: of some images, by the model in the mode that it is in.
        """
        self.training()
        moving = self.moving()
        if not moving:
            return None
        kept = [{k: t.clone() for k, t in module.named_buffers()} for module in moving]
        self.model.eval()
        settled = float(loss())
        for module in moving:  # dropout stays out of it
            module.train()
        moved = float(loss())
        for module, buffers in zip(moving, kept, strict=True):
            for name, tensor in module.named_buffers():
                tensor.copy_(buffers[name])
        self.training()
        return moved, settled
