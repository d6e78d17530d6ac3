"""Defines the kind `exporter`, and offers formats and commands. Light: imports neither click nor
torch.
"""

from __future__ import annotations

from typing import Any

from tvc_core import Kind, hookimpl

from . import kinds
from .kinds import ExporterSpec

TVC_API = (1, 1)
TVC_OWNER = "tvc-export"
TVC_KINDS = (Kind(spec=ExporterSpec, hook=kinds.tvc_export_exporters),)

_COMMANDS = {
    "export": "Write a model for another runtime, with a proof of equal answers.",
    "verify": "Repeat the proof of an exported file.",
    "bench": "Measure how long models and exported files take, in turn.",
}
"""The summary of each, by its name."""


@hookimpl
def tvc_export_exporters() -> list[ExporterSpec]:
    """Offer the formats of torch, ONNX Runtime, OpenVINO, ExecuTorch, LiteRT and Core ML."""
    return [
        ExporterSpec(
            name="pt2",
            factory="tvc_export.formats.pt2:export",
            run="tvc_export.formats.pt2:open_file",
            store="tvc_export.formats.pt2:Store",
            suffix=".pt2",
            names=True,
            summary="torch.export: runs in torch, without tvc.",
        ),
        ExporterSpec(
            name="onnx",
            factory="tvc_export.formats.onnx:export",
            run="tvc_export.formats.onnx:open_file",
            store="tvc_export.formats.onnx:Store",
            suffix=".onnx",
            beside=(".onnx.data",),
            modules=("onnx", "onnxscript", "onnxruntime"),
            install="tvc-export[onnx]",
            int8=True,
            names=True,
            summary="ONNX: runs in ONNX Runtime; int8 by its static quantization.",
        ),
        ExporterSpec(
            name="openvino",
            factory="tvc_export.formats.openvino:export",
            run="tvc_export.formats.openvino:open_file",
            store="tvc_export.formats.openvino:Store",
            suffix=".xml",
            beside=(".bin",),
            modules=("openvino",),
            install="tvc-export[openvino]",
            summary="OpenVINO: an .xml file, and a .bin file with the weights beside it.",
        ),
        ExporterSpec(
            name="executorch",
            factory="tvc_export.formats.executorch:export",
            run="tvc_export.formats.executorch:open_file",
            suffix=".pte",
            modules=("executorch",),
            install="tvc-export[executorch]",
            summary="ExecuTorch: runs on phones and small devices, by XNNPACK.",
        ),
        ExporterSpec(
            name="litert",
            factory="tvc_export.formats.litert:export",
            run="tvc_export.formats.litert:open_file",
            suffix=".tflite",
            tolerance=1e-4,  # measured on Lite0: 8e-6 on noise, 1.8e-5 on zeros
            modules=("litert_torch", "ai_edge_litert"),
            install="tvc-export[litert]",
            summary="LiteRT (TensorFlow Lite): runs on phones.",
        ),
        ExporterSpec(
            name="coreml",
            factory="tvc_export.formats.coreml:export",
            suffix=".mlpackage",
            modules=("coremltools",),
            install="tvc-export[coreml]",
            summary="Core ML: converts here, runs on macOS only, so nothing is proved here.",
        ),
    ]


@hookimpl(optionalhook=True)  # works where tvc-cli is not installed
def tvc_cli_commands() -> list[Any]:
    """Offer the commands of this plugin."""
    from tvc_cli import CommandSpec

    return [
        CommandSpec(name=name, factory=f"tvc_export.commands:{name}_command", summary=summary)
        for name, summary in _COMMANDS.items()
    ]
