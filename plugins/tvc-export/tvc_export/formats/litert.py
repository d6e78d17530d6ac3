"""The format `litert`, which was TensorFlow Lite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tvc_core import ParameterError

from ..program import ExportOptions
from ..quieting import quiet

__all__ = ["export", "open_file"]


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program for LiteRT, for one size of images.

    Raises:
        ParameterError: sizes of the program vary.
    """
    import litert_torch

    names = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name in names)
    shape = list(node.meta["val"].shape)
    if not all(isinstance(size, int) for size in shape):
        raise ParameterError("litert writes files for one size of images: --dynamic none")
    with quiet():
        litert_torch.convert(program.module(), (torch.zeros(shape),)).export(str(path))


class Runner:
    """Runs a `.tflite` file in LiteRT, on one thread."""

    def __init__(self, path: Path) -> None:
        from importlib import metadata

        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = self._interpreter.get_output_details()
        self.precision = str(self._input["dtype"].__name__)
        self.runtime = f"ai-edge-litert {metadata.version('ai-edge-litert')}"

    def __call__(self, images: Any) -> list[Any]:
        """Return the outputs as arrays."""
        self._interpreter.set_tensor(self._input["index"], images)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(each["index"]).copy() for each in self._outputs]


def open_file(path: Path) -> Runner:
    """Open a file to run it."""
    return Runner(path)
