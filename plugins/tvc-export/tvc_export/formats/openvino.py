"""The format `openvino`: an .xml file with the network, and a .bin file with the weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ..program import ExportOptions
from ..quieting import quiet

__all__ = ["Store", "export", "open_file"]

_MARK = re.compile(rb"\n<!--tvc.certificate (.*)-->\n\Z", re.DOTALL)


@contextlib.contextmanager
def _silent() -> Iterator[Any]:
    """Import OpenVINO, whose converter would report what it converts to its makers: inside, it
    talks to the stand-in that it has itself for where its reporter is not installed.
    """
    import openvino
    from openvino.tools.ovc import convert_impl, telemetry_stub, telemetry_utils

    with (
        mock.patch.object(convert_impl, "tm", telemetry_stub),
        mock.patch.object(telemetry_utils, "tm", telemetry_stub),
    ):
        yield openvino


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program for OpenVINO, its numbers in float32: it would store them in float16."""
    with _silent() as ov, quiet():
        model = ov.convert_model(program)
        model.inputs[0].get_tensor().set_names({"images"})
        for output, name in zip(model.outputs, options.outputs, strict=True):
            output.get_tensor().set_names({name})
        ov.save_model(model, path, compress_to_fp16=False)


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core, one for the process.

    Each sets a stack for signals and puts the one before back when it goes, whichever goes first:
    after two of them the next signal, such as Ctrl-C, would end the process on memory that is gone.
    """
    import openvino as ov

    return ov.Core()


class Runner:
    """Runs an .xml file in OpenVINO, on the CPU and one thread.

    In float32: where the CPU has bfloat16, OpenVINO would compute with that.
    """

    def __init__(self, path: Path) -> None:
        import openvino as ov

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self._model = _core().compile_model(path, "CPU", settings)
        hint = self._model.get_property("INFERENCE_PRECISION_HINT")
        self.precision = hint.to_string() if hasattr(hint, "to_string") else str(hint)
        self.precision = {"f32": "float32"}.get(self.precision, self.precision)
        self.runtime = f"openvino {ov.__version__.partition('-')[0]}"

    def __call__(self, images: Any) -> list[Any]:
        """Return the outputs as arrays."""
        found = self._model(images)
        return [found[output].copy() for output in self._model.outputs]


def open_file(path: Path) -> Runner:
    """Open a file to run it."""
    return Runner(path)


class Store:
    """The certificate is a comment at the end of the .xml file."""

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Put the certificate into a file that has none."""
        # a comment must not have two hyphens, which JSON has inside of strings only
        escaped = text.replace("--", "-\\u002d")
        with path.open("ab") as file:
            file.write(f"\n<!--tvc.certificate {escaped}-->\n".encode())

    @staticmethod
    def read(path: Path) -> tuple[str, str]:
        """Return the certificate, and the digest of all else: of both files."""
        data = path.read_bytes()
        found = _MARK.search(data)
        text = found[1].decode() if found else ""
        rest = data[: found.start()] if found else data
        weights = path.with_suffix(".bin").read_bytes()
        digest = hashlib.sha256(rest).digest() + hashlib.sha256(weights).digest()
        return text, hashlib.sha256(digest).hexdigest()
