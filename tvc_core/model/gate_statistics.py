"""What the gates of inserted blocks are on some data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..surgery.patch import Patch

__all__ = ["GateRecorder", "GateStatistics"]

NEAR = 0.01
"""How near to 0 or 1 a gate is saturated: a sigmoid has a hundredth of a slope there."""
MOST_SATURATED = 0.99
"""Share of saturated entries from which a gate is dead."""
LEAST_RESPONSE = 1e-4
"""Response below which a gate is dead: it scales by the same numbers for every input."""


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """The values of one block's gate, which multiplies the map, on some data.

    Args:
        mean: of all entries.
        spread: standard deviation of all entries.
        response: standard deviation of each channel's entries over images and pixels, their mean
            over channels: how much the gate depends on what it sees. None for a single image.
        saturation: share of entries within 0.01 of 0, or of 1 where none is above 1 and the gate
            does not start there.
        dead: why the gate does nothing of use, as a sentence; "" where it does, is made to be the
            same for every image, or is still the 1 that it starts at.
    """

    mean: float
    spread: float
    response: float | None
    saturation: float
    dead: str


class GateSums:
    """Sums over batches, of each channel of one gate.

    Args:
        starts_at_one: the block is the identity at its start by a gate of 1, which is no bound of
            the gate then, but where it learns best.
    """

    def __init__(self, starts_at_one: bool) -> None:
        self.starts_at_one = starts_at_one
        self.count = 0
        self.is_constant = False
        self.sums: Any = 0
        self.squares: Any = 0
        self.num_zero = 0
        self.num_one = 0
        self.above_one = False

    def add(self, gate: Tensor, axis: int, ndim: int) -> None:
        """Add the gate of one batch, a map of so many axes, whose channels are along one of them.

        A gate with fewer axes is the same for every image by intent, as factors for each channel.
        """
        self.is_constant = gate.ndim < ndim
        gate = gate[(None,) * (ndim - gate.ndim)]
        values = gate.detach().double().movedim(axis, 0).flatten(1)
        self.count += values.shape[1]
        self.sums = self.sums + values.sum(1)
        self.squares = self.squares + values.square().sum(1)
        self.num_zero += int((values.abs() <= NEAR).sum())
        self.num_one += int(((values - 1).abs() <= NEAR).sum())
        self.above_one = self.above_one or bool((values > 1 + 1e-3).any())

    def statistics(self, num_images: int) -> GateStatistics | None:
        """Return the statistics; None where the gate was not seen."""
        if not self.count:
            return None
        means = self.sums / self.count
        within = (self.squares / self.count - means.square()).clamp(min=0)
        response = float(within.sqrt().mean()) if num_images > 1 else None
        bounded = not (self.above_one or self.starts_at_one)
        num_saturated = self.num_zero + (self.num_one if bounded else 0)
        saturation = num_saturated / (self.count * len(means))
        mean = float(means.mean())
        spread = float((within + (means - mean).square()).mean().sqrt())
        dead = ""
        if not (self.is_constant or (self.starts_at_one and mean == 1 and spread == 0)):
            if saturation >= MOST_SATURATED:
                dead = f"{saturation:.0%} of its entries are saturated, so it hardly learns"
            elif response is not None and response < LEAST_RESPONSE:
                dead = f"it is the same for every input, {mean:.3g} on average"
        return GateStatistics(
            mean=mean, spread=spread, response=response, saturation=saturation, dead=dead
        )


class GateRecorder:
    """Collects the gates of patches while it is entered, each computed once more beside the
    patch.
    """

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self.patches = {home: patch for home, patch in patches.items() if patch.gated}
        self.sums = {home: GateSums(patch.neutral) for home, patch in self.patches.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside."""
        handles = [
            patch.register_forward_pre_hook(partial(self._record, home))
            for home, patch in self.patches.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, home: str, patch: Patch, args: tuple[Any, ...]) -> None:
        channels_last = patch.view is not None and patch.view.block == "NHWC"

        def look(x: Tensor) -> Tensor:
            axis = -1 if channels_last or x.ndim < 4 else 1  # tokens as they are: [N, tokens, C]
            self.sums[home].add(patch.block.gate(x), axis, x.ndim)  # type: ignore[operator]
            return x

        with torch.no_grad():
            look(args[0]) if patch.view is None else patch.view.run(look, args[0])
