"""All that touches Lightning Fabric and torch.distributed: devices, launch, precision, wrappers,
and what processes say to each other.

Fabric launches the processes (or takes those of torchrun and SLURM) and gives devices and
precision. The wrappers are torch's own, since a thaw drops them and wraps again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tvc_core import HybridModel

from .errors import TrainingError

__all__ = ["Devices", "local", "own"]

_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float64": "64-true"}


_PATIENCE = 2.0
"""How long a process that has failed leaves the first one to say why [s]."""


class Devices:
    """The processes of a training, this one's device, and the wrapper around the model.

    Args:
        devices: processes on each machine.
        nodes: machines.
        strategy: "ddp" or "fsdp", for several processes.
        precision: "float32", "bfloat16" or "float64".
        accelerator: Fabric's name of what to compute on: "auto", "cpu", "cuda", "mps".

    Attributes:
        asked: how many processes there will be when all are launched.
        nodes: machines.
        strategy: "ddp", "fsdp", or "one" for a single process.
        dtype: of the model.
    """

    def __init__(
        self,
        *,
        devices: int = 1,
        nodes: int = 1,
        strategy: str = "ddp",
        precision: str = "float32",
        accelerator: str = "auto",
    ) -> None:
        from lightning_fabric import Fabric  # takes seconds
        from lightning_fabric.strategies.ddp import DDPStrategy

        local = int(os.environ.get("LOCAL_WORLD_SIZE", devices))  # torchrun has decided
        whole = int(os.environ.get("WORLD_SIZE", local * nodes))
        nodes = max(nodes, whole // local)
        self.asked, self.nodes = local * nodes, nodes
        several = self.asked > 1
        self.strategy = strategy if several else "one"
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        with _quiet():
            self.fabric = Fabric(
                accelerator=accelerator,
                devices=local,
                num_nodes=nodes,
                strategy=DDPStrategy() if several else "auto",
                precision=_PRECISION[precision],  # type: ignore[arg-type]
            )
        self._autocast = precision == "bfloat16"
        self._wrapper: nn.Module | None = None

    def launch(self) -> None:
        """Start the other processes, and wait for them."""
        with _quiet():
            self.fabric.launch()

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.fabric.device

    @property
    def first(self) -> bool:
        """This is the process that writes files."""
        return self.rank == 0

    def seed(self, *parts: int) -> None:
        """Seed dropout and mixup with numbers, such as (seed, step, rank)."""
        number = int.from_bytes(
            hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big"
        )
        torch.default_generator.manual_seed(number)  # torch.manual_seed takes 80 times as long
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)
        elif self.device.type == "mps":
            torch.mps.manual_seed(number)

    # -- the model ---------------------------------------------------------------------------------

    def place(self, model: HybridModel, *, layout: str = "contiguous") -> None:
        """Move a model to the device, its type of numbers, and a layout in memory. Layers take
        images of either layout, so shards of weights stay as they are.
        """
        model.to(self.device, self.dtype)
        if layout == "channels_last" and self.strategy != "fsdp":  # whose shards are contiguous
            model.to(memory_format=torch.channels_last)

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wrap(self, model: HybridModel, *, compiled: bool = False) -> Callable[[Tensor], Any]:
        """Return what runs the model in training; where there are several processes, replicas or
        shards of it.

        Replicas must be equal: that is compared by a hash, which is cheaper than sending the
        weights.

        Raises:
            TrainingError: they are not.
        """
        run: nn.Module = model
        if self.strategy == "fsdp":
            self._shard(model)
        elif self.strategy == "ddp":
            self.check_equal(model.state_dict().items(), "weights")
            ids = [self.device.index] if self.device.type == "cuda" else None
            run = nn.parallel.DistributedDataParallel(model, device_ids=ids, init_sync=False)
            run.broadcast_buffers = False  # as an argument, newer torch warns of it
        self._wrapper = run if self.strategy == "ddp" else None
        return torch.compile(run) if compiled else run

    def unwrap(self) -> None:
        """Drop the wrapper, so that parts of the model can be thawed. A wrapper that stayed would
        average no gradient of what is thawed now, and replicas would drift apart.
        """
        self._wrapper = None

    def _shard(self, model: HybridModel) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(model, FSDPModule):
            return  # requires_grad may be switched between steps, which FSDP2 honors
        for stage in model.stage_info:
            for path in stage.paths:
                fully_shard(model.get_submodule(path))
        fully_shard(model)

    def settle(self, model: HybridModel) -> None:
        """Let parameters be shards again: a pass without gradients leaves some of them whole."""
        if self.strategy == "fsdp":
            from torch.distributed.fsdp import FSDPModule

            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes."""
        return self.fabric.autocast() if self._autocast else nullcontext()

    @contextmanager
    def part(self, model: HybridModel, *, last: bool) -> Iterator[None]:
        """Run a part of a step; gradients are exchanged in the last one."""
        if self.strategy == "fsdp":
            sharded: Any = model
            sharded.set_requires_gradient_sync(last)
        held = self._wrapper is not None and not last
        with self._wrapper.no_sync() if held else nullcontext():  # type: ignore[union-attr,operator]
            yield

    # -- between processes -------------------------------------------------------------------------

    def check_equal(self, tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
        """Compare tensors of all processes by their hashes.

        Raises:
            TrainingError: some differ; the message names the first.
        """
        if self.world == 1:
            return
        own = {name: _hash(tensor) for name, tensor in tensors}
        everyone = self.everyone(own)
        wrong = [name for name in own if any(each.get(name) != own[name] for each in everyone)]
        if wrong:
            raise TrainingError(
                f"the {what} of {len(wrong)} tensors differ between processes, the first of them "
                f"{wrong[0]!r}: replicas drift apart, which is a bug in tvc-train or a fault of a "
                "machine. Go on from the last checkpoint with --resume"
            )

    def any(self, flag: bool) -> bool:
        """Return whether a flag is true in one of the processes."""
        if self.world == 1:
            return flag
        found = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return bool(found)

    def total(self, *numbers: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.world == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(found)
        return [float(each) for each in found]

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, which may have different numbers of them, or none."""
        if self.world == 1:
            return rows
        found = [torch.as_tensor(each) for each in self.everyone(rows.cpu())]
        return torch.cat([each for each in found if len(each)] or found[:1])

    def first_said(self, text: str) -> str:
        """Return the text of the first process that has one."""
        return next(filter(None, self.everyone(text)), "")

    def agree(self, value: Any) -> Any:
        """Return the first process's value, plain data, in all."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def together(self, act: Callable[[], Any]) -> Any:
        """Let the first process act, and raise its error in all.

        Raises:
            TrainingError: the action failed.
        """
        found, problem = None, ""
        if self.first:
            try:
                found = act()
            except TrainingError as error:
                if self.world == 1:
                    raise
                problem = str(error)
        if problem := self.agree(problem):
            raise TrainingError(problem)
        return found

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into tensors, such as running statistics."""
        if self.world == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
            tensor.div_(self.world)

    def whole(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors whole, those that are spread over processes as well, on the CPU."""
        return {
            name: (each.full_tensor() if hasattr(each, "full_tensor") else each).detach().cpu()
            for name, each in tensors
        }

    def like(self, value: Tensor, target: Tensor) -> Tensor:
        """Return a whole tensor as another one lies: on its device, spread as it is, and in its
        layout in memory, by which fused optimizers go through their states.
        """
        if hasattr(target, "device_mesh") and value.ndim:
            from torch.distributed.tensor import distribute_tensor

            spread: Any = target
            return distribute_tensor(value.to(self.device), spread.device_mesh, spread.placements)
        if value.ndim and value.shape == target.shape:
            new = torch.empty_like(target.detach(), dtype=value.dtype, device=self.device)
            return new.copy_(value)
        return value.to(self.device if value.ndim or target.device.type != "cpu" else "cpu")

    def everyone(self, value: Any) -> list[Any]:
        """Return the values of all processes, plain data or tensors, in their order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(failed=error is not None)
        # gloo's words, and NCCL's, when another process has left
        if isinstance(error, RuntimeError) and re.search("onnection|remote process", str(error)):
            raise TrainingError(
                f"process {self.rank} of {self.world} has lost another one, which says why it ended"
            ) from error

    def close(self, *, failed: bool = False) -> None:
        """Leave the group of processes.

        Args:
            failed: this process ends with an error. Where all of them have it, the first says it,
                and needs time before its launcher sees that others have ended. One that goes on
                waits for this one, which therefore has to end.
        """
        self.unwrap()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if not failed:
                torch.distributed.barrier()
            elif not self.first:
                time.sleep(_PATIENCE)
            torch.distributed.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor, with its gradient: all of it, or its shard."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def own(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor, without its gradient."""
    return local(tensor).detach()


def _hash(tensor: Tensor) -> str:
    whole = tensor.detach().to("cpu").contiguous().reshape(-1)
    data: Any = whole.view(torch.uint8).numpy() if whole.numel() else b""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Fabric's lines about itself to its log."""
    import logging

    logger = logging.getLogger("lightning_fabric")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
