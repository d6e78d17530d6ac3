"""Limit what is read for a network, and the tensors that are made while one is built for a file.

What is read into a model is bounded by the model: a file of many times its size or number of
tensors cannot be meant for it, and is refused by its header or its length.

A recipe in a file can ask for a network of any size, and making it takes the time and memory that a
reader wants to save by looking at the file first. The file says how large its largest tensor is, so
a larger one cannot be part of the model. A mode sees the calls of this thread that make tensors out
of sizes, before they are run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..errors import TvcError, WeightsError

__all__ = ["Room", "limit_tensors"]

_ANY = 1 << 22
"""Numbers that a tensor may have in any network, whatever its file holds."""

_TIMES = 16
"""How often as much as its file may be made: a build draws, compares and forgets."""

_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)
_BY_NUMBER = (torch.arange, torch.linspace, torch.eye)


_ANY_BYTES, _ANY_COUNT = 1 << 28, 1 << 12
"""What may be read for any model [bytes], [tensors]."""


@dataclass(frozen=True)
class Room:
    """What may be read for a model.

    Args:
        count: tensors at most.
        size: of all together at most [bytes].
    """

    count: int
    size: int

    @staticmethod
    def of(model: nn.Module) -> Room:
        """Return room for a model many times over: for its optimizer's state, an average of its
        weights, the larger network that it is a part of.
        """
        tensors = [*model.parameters(), *model.buffers()]
        size = sum(0 if is_lazy(t) else t.numel() * t.element_size() for t in tensors)
        if any(map(is_lazy, tensors)):
            size = 1 << 62  # how large they are is not known yet
        return Room(_ANY_COUNT + _TIMES * len(tensors), _ANY_BYTES + _TIMES * size)

    def check(self, path: Path, size: int, count: int = 0) -> None:
        """Refuse to read more.

        Raises:
            WeightsError: it is more.
        """
        if size > self.size or count > self.count:
            what = f"{count:,} tensors" if count > self.count else f"{size:,} bytes"
            raise WeightsError(
                f"{path}: {what}, many times what the model has, so it is not read. If you trust "
                "the file, read it by tvc_core.read_state_dict and pass what is for the model"
            )


class limit_tensors(TorchFunctionMode):  # noqa: N801  read as a verb
    """A context in which tensors that are made may not be larger than a limit.

    Args:
        sizes: of the file's tensors [numbers].
        what: how the error begins.
        times: how often as much as the file's tensors may be made.
        error: class of the error.

    Raises:
        WeightsError: or what `error` is: a tensor was to be made that is larger than each of the
            file's, and than those of any small network; or more than many times as much as all of
            them.
    """

    def __init__(
        self,
        sizes: list[int],
        what: str,
        *,
        times: int = _TIMES,
        error: type[TvcError] = WeightsError,
    ) -> None:
        super().__init__()
        self.most = max([_ANY, *sizes])
        self.left = times * (self.most + sum(sizes))
        self.what = what
        self.error = error

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Both numbers are needed: a limit on each tensor alone would let a recipe ask for a million
        # tensors of that size. The sum has room for what a build makes besides its weights: the
        # weights that the factory draws and the file then replaces, the probe's maps, copies for
        # comparing.
        if func in _MAKERS or func in _BY_NUMBER:
            self.take(_sizes((*args, kwargs.get("size", ())), func))
        return func(*args, **kwargs)

    def take(self, sizes: Sequence[int]) -> None:
        """Count a tensor that is to be made.

        Raises:
            WeightsError: or what the error is: it is too large, or too many were made.
        """
        size = math.prod(sizes)
        self.left -= size
        if size > self.most or self.left < 0:
            raise self.error(
                f"{self.what}, which makes a tensor of the size "
                f"{'x'.join(str(size) for size in sizes[:8])}"
            )


def _sizes(args: Iterable[Any], func: Any) -> list[int]:
    # torch takes a size as one tuple or as several numbers, and some functions take other numbers
    # beside it: `full` its value, `arange` and `linspace` where they begin and end. For these a
    # bound is enough, so the largest number counts.
    args = list(args)
    if func is torch.full:
        args = args[:1]
    if func in _BY_NUMBER:
        numbers = [abs(each) for each in args if isinstance(each, (int, float))]
        return [int(max(numbers, default=0))]
    found: list[int] = []
    for each in args:
        if isinstance(each, (tuple, list)):
            found += [int(size) for size in each if not isinstance(size, Tensor)]
        elif isinstance(each, int):
            found.append(each)
    return found
