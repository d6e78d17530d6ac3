"""What is measured of a patched network in one forward pass: which patches run, and the maps of
stem and stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import PatchError, foreign
from ..surgery.anatomy import Anatomy, StageInfo
from ..surgery.layouts import Shape, channels_of, grid_of, layout_of
from ..surgery.noise import noise
from ..surgery.sites import Probe, odd_stride
from .features import MapReader, Taps
from .state import Feature, PatchRecord
from .strides import strides_of

__all__ = ["measure", "run_patched"]


def measure(
    network: nn.Module, anatomy: Anatomy, taps: Taps, records: Iterable[PatchRecord], probe: Probe
) -> tuple[torch.Tensor, tuple[Feature, ...]]:
    """Run the patched network once and return the logits, and what was seen of stem and stages."""
    # One pass for all of it: which patches ran, the logits for the step-0 difference, and the maps.
    # Only where their sizes leave the strides in doubt does `strides_of` ask for another size.
    logits, maps = run_patched(network, anatomy, taps, records, probe)

    def maps_at(size: tuple[int, int]) -> list[Shape]:
        image = noise((*probe.image.shape[:2], *size)).to(probe.image)
        seen = taps.collect(lambda x: Probe(x).run(network), image)
        return [tuple(seen[index].shape) for index in range(len(maps))]

    odd = odd_stride(network)
    whole = all(side % odd == 0 for side in probe.size)
    strides = strides_of(maps, probe.size, maps_at, whole=whole)
    parts = enumerate((anatomy.stem, *anatomy.stages))
    return logits, tuple(
        _feature(index - 1, paths, maps[index], strides[index], probe) for index, paths in parts
    )


def run_patched(
    network: nn.Module, anatomy: Anatomy, taps: Taps, records: Iterable[PatchRecord], probe: Probe
) -> tuple[torch.Tensor, list[Shape]]:
    """Run the patched network once: every patch must run. Return the logits and the shapes of stem
    and stages.
    """
    # The promise that no patch is without effect starts here: a hook on each patch notes that it
    # ran. A target that the network builds and never calls in eval mode (an auxiliary head, a
    # branch that is switched off) would leave its patch silent.
    ran: set[str] = set()
    records = tuple(records)
    homes = [(record, path) for record in records for path in record.paths]

    def watch(path: str) -> Callable[[], Any]:
        return lambda: network.get_submodule(path).register_forward_hook(lambda *_: ran.add(path))

    hooks = [watch(path) for _, path in homes]
    outputs: list[torch.Tensor] = []
    targets = ", ".join(f"{record.target} ({record.block or record.op})" for record in records)
    with foreign(PatchError, f"the network fails with the patches at {targets}"):
        maps = taps.collect(lambda _: outputs.append(probe.run(network, hooks)), probe.image)
    for record, path in homes:
        if path not in ran:
            if not getattr(network.get_submodule(path), "enabled", True):
                raise PatchError(
                    f"{record.target}: the patch {path!r} is switched off, so nothing can be "
                    "measured; call this outside of without()"
                )
            raise PatchError(
                f"{record.target}: the patch {path!r} never ran in a forward pass; choose a target "
                "that is called"
            )
    return outputs[0], [tuple(maps[index].shape) for index in range(len(anatomy.taps))]


def _feature(
    stage: int, paths: tuple[str, ...], shape: Shape, stride: int, probe: Probe
) -> Feature:
    layout = layout_of(shape, probe.size)
    grid = grid_of(shape[1], probe.size) if layout == "NLC" else None
    info = StageInfo(
        stage=stage,
        module=paths[-1],
        paths=paths,
        channels=channels_of(shape, layout),
        stride=stride,
        layout=layout or "unknown",
    )
    reader = MapReader(layout, grid[0], probe.size[0] // grid[1]) if grid else MapReader(layout)
    return Feature(info=info, reader=reader)
