"""What is inserted: the block with its gate, the hook that runs it, and the tree where it lives."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PatchError
from . import calls
from .hooks import TvcHook, is_watched
from .layouts import LayoutView
from .noise import first_float
from .positions import POSITIONS, Combine, Position
from .traced import run_traced

__all__ = ["Patch", "PatchHook", "PatchTree"]


class Patch(nn.Module):
    """An inserted block and the gate by which it starts as the identity.

    For a gated block, computes x * (1 + a * (gate(x) - 1)), for others x + a * (block(x) - x), with
    `a` (`alpha`, shape [1]) zero at first: exactly x, whatever the block's weights. The optimizer
    moves `a` first, and through it the block. Maps a tensor to the same layout and dtype; the shape
    is kept while there is a gate. A position may combine map and result by another rule, such as
    map + a * block(x) beside the target.

    Args:
        block: the inserted module.
        gated: the block has a method `gate(x)` with block(x) == x * gate(x). It may also have
            `mix(x, alpha)`, which computes the first formula at once, without a map between. A
            block that has hooks is called itself, by the second formula.
        view: shows the block the map in another layout; None where it takes the map as it is.
        position: what the block reads, and what becomes of its result.
    """

    alpha: nn.Parameter | None

    def __init__(
        self,
        block: nn.Module,
        *,
        gated: bool = False,
        view: LayoutView | None = None,
        position: Position = POSITIONS["after"],
    ) -> None:
        super().__init__()
        self.block = block
        self.gated = gated
        self.view = view
        self.position = position
        self.neutral = False
        """The block by itself leaves the map unchanged at the start, so that it needs no gate."""
        self.home = ""
        """Path at which it lives, such as "patches.layer3.se"; `attach` sets it."""
        self.told = _Told()
        self.enabled = True
        """It runs in every thread. A plain attribute, which torch.compile guards on."""
        self.off: set[Any] = set()
        """Who has switched it off: one entry for each `without`, or one of `_EVERYWHERE`."""
        self.regate()

    def regate(self) -> None:
        """Take the gate back, closed: for tensors that have one."""
        like = first_float(self.block)
        self.alpha = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))

    def ungate(self) -> None:
        """Drop the gate: from now on this is the block alone, with its published start."""
        self.alpha = None

    def switch(self, token: Any, on: bool) -> None:
        """Switch off, or on again for whoever gave this token; it runs when no token is left."""
        (self.off.discard if on else self.off.add)(token)
        self.enabled = not self.off

    def runs(self) -> bool:
        """Return whether this thread is to run the block."""
        if self.enabled:
            return True
        if torch.compiler.is_compiling() or not self.off.isdisjoint(_EVERYWHERE):
            return False
        return self.off.isdisjoint(calls.switched_off())

    def forward(self, x: Tensor, output: Tensor | None = None) -> Tensor:
        if self.position.combine is not None:
            return self._combine(self.position.combine, x, x if output is None else output)
        if self.view is None:
            return self._mix(x)
        return self.view.run(self._mix, x)

    def _mix(self, x: Tensor) -> Tensor:
        if self.alpha is None:
            return self.block(x)
        gated = self.gated and not is_watched(self.block)
        if gated and (mix := getattr(self.block, "mix", None)) is not None:
            mixed: Tensor = mix(x, self.alpha)
            return mixed
        a = self.alpha.to(x.dtype)  # uncast, a float32 gate turns a bfloat16 map into float32
        if gated:
            gate: Tensor = self.block.gate(x)  # type: ignore[operator]
            return x * (1 + a * (gate.to(x.dtype) - 1))
        # a * y - a * x, not a * (y - x): in float16 the difference of two finite maps can overflow,
        # and 0 * inf is nan
        return x + (a * self.block(x).to(x.dtype) - a * x)

    def _combine(self, combine: Combine, x: Tensor, map: Tensor) -> Tensor:
        y = self.block(x) if self.view is None else self.view.run(self.block, x)
        gate = None if self.alpha is None else self.alpha.to(map.dtype)
        try:
            return combine(map, y.to(map.dtype), gate)
        except RuntimeError as error:
            if torch.compiler.is_compiling() or y.shape == map.shape:
                raise
            raise PatchError(
                f"{self.home} gives {list(y.shape)} of this image, and what it is added to is "
                f"{list(map.shape)}: one rounds up where its stride does not divide a side, the "
                "other down. Give the model images whose sides its strides divide"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # nothing would switch a copy on again
        return {**self.__dict__, "enabled": True, "off": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("off", set())

    def extra_repr(self) -> str:
        return "" if self.alpha is not None else f"start={'itself' if self.neutral else 'paper'}"


_EVERYWHERE = {"removed", "proof"}
"""Tokens that switch a patch off in every thread, where no other code runs the model."""


class _Told:
    """Whether a warning has named a patch of this network: one flag, which its patches share."""

    already = False


class PatchTree(nn.Module):
    """A node of the tree that mirrors the targets' paths.

    Its forward is the identity, so that a root nn.Sequential, which runs all its children, may hold
    one, and so may a Sequential that a user makes of a network's children.
    """

    def forward(self, x: Any) -> Any:
        return x

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield what is inserted, not the nodes: tools take modules by the end of their names.

        A node where a tool has registered tensors is told: they are in the state dict.
        """
        memo = set() if memo is None else memo
        if (self._parameters or self._buffers) and self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from child.named_modules(memo, path, remove_duplicate)


class _Kept(tuple[Any, ...]):
    """The arguments of one call of a target, with copies of the first for parallel patches.

    A pre-hook returns it, torch hands it to the forward hook of the same call: so the copies belong
    to the call, and any number of calls may be under way.
    """

    copies: Mapping[str, Tensor] = {}

    def __new__(cls, *args: Any) -> _Kept:
        """Take arguments one by one: so torch makes them again for a target with backward hooks."""
        return super().__new__(cls, args)


def _keep(args: tuple[Any, ...], like: Any, copies: dict[str, Tensor] | None = None) -> _Kept:
    """Return arguments with the copies that `like` has, and more."""
    kept = _Kept(*args)
    kept.copies = {**(like.copies if isinstance(like, _Kept) else {}), **(copies or {})}
    return kept


class PatchHook(TvcHook):
    """What makes a target run a patch: a picklable forward hook or pre-hook, as the position says.

    Where the target's input is kept it is both: the input is copied before the target runs, which
    may overwrite it in place.

    Args:
        patch: the patch.
        module: what is called: the patch, or what another tool has wrapped around it.
        target: the module that it is put on.
    """

    host: weakref.ref[nn.Module] | None = None
    """The module that it was put on; None of a copy, which another one may run by now."""

    def __init__(self, patch: Patch, module: nn.Module, target: nn.Module) -> None:
        self.patch = patch
        self.module = module
        self.host = weakref.ref(target)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "host"}

    def is_on(self, target: nn.Module) -> bool:
        """Return whether it was put on a module by tvc, and not moved there by another tool."""
        return self.host is not None and self.host() is target

    def __call__(self, target: nn.Module, args: Any, *output: Any) -> Any:
        # Called up to twice in a call of the target. As a pre-hook (`output` is empty) it returns
        # new arguments: changed ones where the patch runs before, or the same ones with a copy of
        # the input where it runs beside the target, which may overwrite its input. As a forward
        # hook it returns the new output. torch hands the arguments of the pre-hook to the forward
        # hook of the same call, which is how the copy gets there.
        patch = self.patch
        if not patch.runs():
            return None
        if not torch.compiler.is_compiling() and not calls.running():
            _tell(target, patch)
        position = patch.position
        if not position.runs_after:
            changed = (self._run(args[0]), *args[1:])
            return _keep(changed, args) if isinstance(args, _Kept) else changed
        if not position.keeps_input:
            return _own_step(self._run(output[0]))
        if not output:
            return _keep(args, args, {patch.home: args[0].clone()})
        x = args.copies.get(patch.home, args[0]) if isinstance(args, _Kept) else args[0]
        return _own_step(self._run(x, output[0]))

    def _run(self, *maps: Any) -> Any:
        if isinstance(maps[0], torch.fx.Proxy):
            return run_traced(self.module, *maps)
        return self.module(*maps)


def _own_step(x: Any) -> Any:
    """Return a patch's result; under torch.fx, which names steps by modules, as the target's own.

    torchvision's create_feature_extractor takes the last step of "layer3" for the map of layer3.
    """
    return x.clone() if isinstance(x, torch.fx.Proxy) else x


def _tell(target: nn.Module, patch: Patch) -> None:
    # In a backward pass it is activation checkpointing that runs a part of the model again.
    if patch.told.already or torch._C._current_graph_task_id() != -1:
        return
    patch.told.already = True
    path = patch.home.partition(".")[2].rpartition(".")[0]
    warnings.warn(
        f"{path!r} ({type(target).__name__}) runs outside of its model, and its patch "
        f"{patch.home!r} with it. Patches are parameters of the model's child "
        f"{patch.home.partition('.')[0]!r}: what runs here trains, saves and moves them only if it "
        "holds that child. Use get_stage_outputs, forward_features or pyramid of the model, or "
        f"model.feature_extractor([{path!r}]), which owns what it runs.",
        UserWarning,
        stacklevel=5,
    )
