"""The format `pt2`: torch's own archive, which checks its guards when it runs."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree

from tvc_core import WeightsError

from ..program import ExportOptions

__all__ = ["Store", "export", "open_file"]

_ENTRY = "extra/certificate.json"


def export(program: Any, path: Path, options: ExportOptions) -> None:
    """Write a program; the archive has no name that tells of its path."""
    with path.open("wb") as file:
        torch.export.save(program, file)  # type: ignore[attr-defined]


class Runner:
    """Runs a `.pt2` file in torch."""

    def __init__(self, path: Path) -> None:
        program = torch.export.load(path)  # type: ignore[attr-defined]
        self._module = program.module()
        kinds = {
            str(each.dtype) for each in program.state_dict.values() if each.is_floating_point()
        }
        self.precision = " and ".join(sorted(each.removeprefix("torch.") for each in kinds))
        self.runtime = f"torch {torch.__version__}"

    def __call__(self, images: Any) -> list[Any]:
        """Return the outputs as arrays."""
        with torch.no_grad():
            found = self._module(torch.from_numpy(images))
        return [each.numpy() for each in _pytree.tree_leaves(found)]


def open_file(path: Path) -> Runner:
    """Open a file to run it.

    Raises:
        WeightsError: it holds more than tensors and JSON.
    """
    return Runner(path)


class Store:
    """The certificate is an entry of the archive, which `torch.export.load(extra_files=...)` reads
    as well.
    """

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Put the certificate into a file that has none."""
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            entry = zipfile.ZipInfo(f"{root}/{_ENTRY}")  # of a fixed date
            archive.writestr(entry, text)

    @staticmethod
    def read(path: Path) -> tuple[str, str]:
        """Return the certificate, and the digest of all else.

        Raises:
            WeightsError: an entry is there that could hold code.
            BadZipFile: it is damaged.
        """
        text, parts = "", []
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                short = name.partition("/")[2]
                if short == _ENTRY:
                    text = archive.read(name).decode()
                    continue
                data = archive.read(name)
                if _may_be_code(short, data):
                    raise WeightsError(
                        f"{path}: {short!r} holds more than tensors, which torch would unpickle, "
                        "and tvc never runs code from a file"
                    )
                parts.append((short, hashlib.sha256(data).hexdigest()))
        return text, hashlib.sha256(repr(parts).encode()).hexdigest()


def _may_be_code(name: str, data: bytes) -> bool:
    """Return whether torch would unpickle an entry, and run what is in it: torch.export.load opens
    examples so that fail to open as plain tensors, and weights that a table says to be pickled.
    """
    if name.startswith("data/sample_inputs/") and data:
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # whatever it is, it is no plain tensor
            return True
        return False
    if name.endswith("_config.json"):
        entries = json.loads(data)["config"].values()
        return any(each["use_pickle"] or "custom_obj" in each["path_name"] for each in entries)
    return name.endswith((".pkl", ".py"))
