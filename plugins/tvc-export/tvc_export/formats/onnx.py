"""The format `onnx`, which ONNX Runtime runs."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from tvc_core import WeightsError

from ..program import ExportOptions
from ..quieting import onnxruntime, quiet

__all__ = ["Store", "export", "open_file"]

_KEY = "tvc.certificate"
_MOST = 2_000_000_000
"""Weights that are in the file itself; protobuf has no messages of 2 GiB [bytes]."""


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program as ONNX; with photos to calibrate, in int8."""

    with quiet():
        found = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(options.outputs),
            optimize=not options.keep_names,
            verbose=False,
        )
    assert found is not None
    model = found.model_proto
    for node in (*model.graph.node, *(node for f in model.functions for node in f.node)):
        # what torch's exporter notes for its own developers: code and traces; the module scopes
        # stay
        kept = [each for each in node.metadata_props if "name_scopes" in each.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if options.calibration is None:
        _save(model, path)
    else:
        _quantize(model, path, options.calibration)


def _save(model: Any, path: Path) -> None:
    """Write a model, its weights in a file beside it where they are too many for one."""
    import onnx

    if sum(len(each.raw_data) for each in model.graph.initializer) < _MOST:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def _quantize(model: Any, path: Path, photos: Any) -> None:
    """Write a model in int8, by ranges of its activations on photos."""
    onnxruntime()
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(photos)

        def get_next(self) -> Any:
            photo = next(self._left, None)
            return None if photo is None else {model.graph.input[0].name: photo[None]}

    with tempfile.TemporaryDirectory() as folder, quiet():
        whole, prepared = Path(folder, "whole.onnx"), Path(folder, "prepared.onnx")
        _save(model, whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # else sums of CPUs without VNNI overflow
            calibrate_method=q.CalibrationMethod.MinMax,
        )


class Runner:
    """Runs an `.onnx` file in ONNX Runtime, on the CPU and one thread."""

    def __init__(self, path: Path) -> None:
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]
        self.runtime = f"onnxruntime {runtime.__version__}"
        self.precision = _precision(path, self._input.type)

    def __call__(self, images: Any) -> list[Any]:
        """Return the outputs as arrays."""
        found: list[Any] = self._session.run(None, {self._input.name: images})
        return found


def _precision(path: Path, taken: str) -> str:
    """Return the type of the numbers that a file computes with."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return "int8" if quantized else {"tensor(float)": "float32"}.get(taken, taken)


def open_file(path: Path) -> Runner:
    """Open a file to run it."""
    return Runner(path)


class Store:
    """The certificate is the file's last entry of `metadata_props`, where every tool for ONNX shows
    it.

    In protobuf a repeated field may be continued at the end of the message, so the file is the file
    without the certificate and that entry after it: the digest is of bytes as they are on the disk.
    """

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Put the certificate into a file that has none."""
        with path.open("ab") as file:
            file.write(_entry(text))

    @staticmethod
    def read(path: Path) -> tuple[str, str]:
        """Return the certificate, and the digest of all else."""
        import onnx

        data = path.read_bytes()
        model = onnx.ModelProto()
        model.ParseFromString(data)
        text = next((each.value for each in model.metadata_props if each.key == _KEY), "")
        end = _entry(text) if text else b""
        if not data.endswith(end):
            raise WeightsError(f"{path}: was changed after its certificate was written")
        found = hashlib.sha256(data[: len(data) - len(end)])
        for name in sorted(_weights_of(model)):
            found.update(hashlib.sha256(path.with_name(name).read_bytes()).digest())
        return text, found.hexdigest()


def _weights_of(model: Any) -> set[str]:
    """Return the names of the files beside a model that hold its weights.

    Raises:
        ValueError: one lies elsewhere.
    """
    told = (each for tensor in model.graph.initializer for each in tensor.external_data)
    names = {each.value for each in told if each.key == "location"}
    if elsewhere := [name for name in names if Path(name).name != name]:
        raise ValueError(f"its weights are said to lie at {elsewhere[0]!r}, not beside it")
    return names


def _entry(text: str) -> bytes:
    import onnx

    end = onnx.ModelProto()
    end.metadata_props.add(key=_KEY, value=text)
    data: bytes = end.SerializeToString(deterministic=True)
    return data
