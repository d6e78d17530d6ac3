"""What was measured at the targets of patches, remembered for the next build of the same network
with the same weights; and the proof of patches at their places, from that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..remembered import key_of, recall, remember
from .noise import noise, noise_source
from .operations import Insertion
from .probing import probing
from .sites import Call, Probe, Site

__all__ = ["keep_their_maps", "measured_sites"]


def measured_sites(
    network: nn.Module, paths: Iterable[str], probe: Probe, key: str
) -> tuple[dict[str, Site], Tensor | None]:
    """Return what flows at some paths, and the logits; None for these where nothing had to run.

    Args:
        network: the network, unpatched.
        paths: dotted paths of modules.
        probe: an image that it accepts.
        key: stands for the network, its weights and the image; empty where nothing does.
    """
    paths = tuple(paths)
    key = key and key_of(key, probe.size, paths)
    if key:
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            rows = recall("sites", key)
            return {path: _site_of(row) for path, row in zip(paths, rows, strict=True)}, None
    sites, logits = probe.sites(network, paths)
    if key:
        remember("sites", key, [dataclasses.asdict(sites[path]) for path in paths])
    return sites, logits


def _site_of(row: dict[str, Any]) -> Site:
    calls: list[dict[str, Any]] = [
        {name: tuple(each) if isinstance(each, list) else each for name, each in call.items()}
        for call in row["calls"]
    ]
    image: Any = tuple(row["image"])
    return Site(
        path=row["path"],
        type_name=row["type_name"],
        calls=tuple(Call(**call) for call in calls),
        image=image,
    )


def keep_their_maps(insertions: Iterable[Insertion], probe: Probe) -> bool:
    """Return whether every patch is seen to leave the map at its place as it is, bit for bit; what
    cannot be told here is a no.

    Args:
        insertions: the patches, with what was measured at their places.
        probe: the image with which that was measured.
    """
    # A network in which every patch gives back the map that it got computes what it computed
    # without them. So instead of the network, whose maps were looked at in an earlier build, each
    # patch runs: on random maps of every shape that was measured at its place, and as large as the
    # map there was, since a block that overflows spoils the map though its gate is closed.
    insertions = tuple(insertions)
    source = noise_source()
    with suppress(Exception), probing(*(each.patch for each in insertions)):
        return all(_keeps(each, probe.image, source) for each in insertions)
    return False  # a pass of the network says what is wrong


def _keeps(insertion: Insertion, like: Tensor, source: torch.Generator) -> bool:
    position = insertion.position

    def maps(side: str) -> list[tuple[Any, float]]:
        calls = insertion.site.calls
        return [(getattr(call, side), getattr(call, f"{side}_peak")) for call in calls]

    def random(shape: Any, peak: float) -> Tensor:
        x = noise(shape, source).to(like)
        return x * (peak / x.abs().max().clamp_min(1e-30))

    for read, written in dict.fromkeys(
        zip(maps(position.reads), maps(position.writes), strict=True)
    ):
        if not (math.isfinite(read[1]) and math.isfinite(written[1])):
            return False
        x, map = random(*read), random(*written)
        given = [x.clone(), map.clone()] if position.keeps_input else [x.clone()]
        y = insertion.patch(*given)
        kept = map if position.keeps_input else x
        if not (torch.equal(y, kept) and torch.equal(given[-1], kept)):
            return False
    return True
