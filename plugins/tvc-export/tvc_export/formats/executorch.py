"""The format `executorch`, by the kernels of XNNPACK where they know an operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..program import ExportOptions
from ..quieting import quiet

__all__ = ["export", "open_file"]


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program for ExecuTorch, which needs a bound for each size that varies."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


class Runner:
    """Runs a `.pte` file in ExecuTorch."""

    precision = "float32"  # the runtime says no type of its own

    def __init__(self, path: Path) -> None:
        from importlib import metadata

        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)  # the method does not keep it alive
        self._method = self._program.load_method("forward")
        self.runtime = f"executorch {metadata.version('executorch')}"

    def __call__(self, images: Any) -> list[Any]:
        """Return the outputs as arrays."""
        return [each.numpy().copy() for each in self._method.execute([torch.from_numpy(images)])]


def open_file(path: Path) -> Runner:
    """Open a file to run it."""
    return Runner(path)
