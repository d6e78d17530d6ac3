"""The kind `exporter`: formats that models are written in. Light: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tvc_core import Spec, hookspec

__all__ = ["ExporterSpec", "tvc_export_exporters"]


@dataclass(frozen=True, kw_only=True)
class ExporterSpec(Spec):
    """A format, what writes it, and what runs it.

    The factory is `export(program, path, options)`: it writes a `torch.export.ExportedProgram`,
    which has one input and whose stack traces are gone, to `path`. `options` is a
    `tvc_export.ExportOptions`.

    Args:
        suffix: of its files, such as ".onnx".
        run: "package.module:attribute" of `open(path)`, which returns a function of an array
            [N, C, H, W] that returns a list of arrays, with the attributes `runtime` (name and
            version) and `precision` (the type in which it computes, as it says itself). Empty where
            nothing runs the format here: then no answer is proved.
        modules: what has to be installed to write and run it, as names of modules.
        install: what `pip install` gets for them.
        int8: whether it can be quantized with photos.
        names: whether parameters can keep their names.
        tolerance: largest difference of an output from torch's that is allowed where the user says
            none, as part of the largest output of its input; on zeros ten times as much.
        beside: what the names of other files end in that are written beside the file, after its
            stem: ".bin" for model.bin beside model.xml.
        store: "package.module:attribute" of what keeps the certificate inside the file, with
            `write(path, text)` and `read(path) -> (text, sha256)`, the digest of all but the
            certificate. Empty for a certificate beside the file.
    """

    kind: ClassVar[str] = "exporter"

    suffix: str
    run: str = ""
    modules: tuple[str, ...] = ()
    install: str = ""
    int8: bool = False
    names: bool = False
    tolerance: float = 1e-5
    beside: tuple[str, ...] = ()
    store: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.suffix.startswith("."), "suffix", "a suffix such as '.onnx'")
        self._require(0 < self.tolerance < 1, "tolerance", "a number between 0 and 1")
        for entry in ("run", "store"):
            if getattr(self, entry):
                self._check_factory(entry)


@hookspec
def tvc_export_exporters() -> list[ExporterSpec]:
    """Offer formats. Must not import torch. Since tvc-export 0.1.

    Example:

        from tvc_core import hookimpl

        TVC_API = (1, 1)

        @hookimpl(optionalhook=True)  # works where tvc-export is not installed
        def tvc_export_exporters():
            from tvc_export import ExporterSpec

            return [
                ExporterSpec(
                    name="acme", factory="acme_format:write", run="acme_format:open_file",
                    suffix=".acme", summary="The format of acme.",
                )
            ]
    """
    raise NotImplementedError
