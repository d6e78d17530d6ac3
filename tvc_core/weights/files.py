"""Open weight files: the hash is compared first, and nothing in a file is ever run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..advice.words import on_file, on_missing
from ..errors import WeightsError, describe_error
from ..specs import WeightsSpec
from .cache import cached_file
from .deferred import lend
from .tables import read_by_table, remember_table
from .verified import compare_hash, state_of, verification_is_off

__all__ = ["read_state_dict", "verification_is_off"]


def read_state_dict(
    path: str | Path | WeightsSpec, *, sha256: str | None = None
) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a file that torch.save wrote.

    Files of torch.save are opened with `weights_only=True`, always: there is no other way to open
    them here.

    Args:
        path: the file, or a pretrained set with a `url`, whose file is downloaded on first use and
            compared with the set's `sha256` each time.
        sha256: start of the SHA-256 that the file must have, in hexadecimal. TVC_VERIFY_WEIGHTS=0
            skips only this.

    Raises:
        WeightsError: the file cannot be downloaded or read, has another hash, is damaged, or holds
            no state dict; or the pretrained set has no `url`.
    """
    if isinstance(path, WeightsSpec):
        if not path.url:
            raise WeightsError(f"WeightsSpec {path.name!r} has no url, so nothing says which file")
        sha256 = sha256 or path.sha256
        path = cached_file(path.url, path.sha256)
    path = Path(path)
    try:
        with path.open("rb") as file:
            before = state_of(file)
            if sha256 is not None:
                compare_hash(file, path, sha256)
            content = _load(file, path)
            if state_of(file) != before:
                raise WeightsError(f"{path}: was changed while it was read; try again")
    except OSError as error:
        hint = on_missing(path, (".safetensors", ".pth", ".pt", ".ckpt", ".bin"))
        raise WeightsError(
            f"{path}: the weights cannot be read: {error.strerror or error}{hint and f'.{hint}'}"
        ) from error
    state = check_state_dict(content, str(path))
    lend(state.values())
    return state


def check_state_dict(content: Any, name: str) -> dict[str, Tensor]:
    """Return `content` if it is a state dict of plain tensors.

    Raises:
        WeightsError: it is something else; for a training checkpoint the message says which entry
            to pass.
    """
    if not isinstance(content, Mapping) or not content:
        what = f"holds {_kind(content)}, not a state dict (a mapping of names to tensors)"
        hint = ". Pass its state_dict()" if hasattr(content, "state_dict") else ""
        raise WeightsError(f"{name}: {what}{hint}")
    wrong = [
        key
        for key, value in content.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    wrong = [key for key in wrong if not str(key).endswith("_extra_state")]
    if wrong:
        inner = [
            key
            for key, value in content.items()
            if isinstance(value, Mapping) and _is_state_dict(value)
        ]
        advice = f" Pass its entry {inner[0]!r}: checkpoint[{inner[0]!r}]." if inner else ""
        entries = ", ".join(f"{key!r} ({_kind(content[key])})" for key in wrong[:4])
        raise WeightsError(
            f"{name}: not a state dict: {len(wrong)} of its entries are no tensors: "
            f"{entries}.{advice}"
        )
    for key, value in content.items():
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta):
            kind = f"{value.layout} tensor on {value.device}"
            raise WeightsError(f"{name}: {key!r} is a {kind}; only plain tensors can be loaded")
    return content  # type: ignore[return-value]


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _kind(value: Any) -> str:
    return (
        f"an empty {type(value).__name__}"
        if isinstance(value, Mapping) and not value
        else f"a {type(value).__name__}"
    )


def _load(file: BinaryIO, path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return safetensors.torch.load(file.read())
        except Exception as error:
            # safetensors raises its own and built-in errors, depending on the damage
            raise WeightsError(
                f"{path}: not a safetensors file, or damaged: {describe_error(error)}"
            ) from error
    if (known := read_by_table(file)) is not None:
        return known
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        remember_table(file, path, content)
        return content
    except OSError:
        raise
    except Exception as error:
        # damaged files raise nearly anything: UnicodeDecodeError, IndexError, KeyError, ...; the
        # text that torch gives advises to run what is in the file
        raise WeightsError(
            f"{path}: cannot be opened as weights: {_what_is_wrong(file, path, error)}"
        ) from error


def _what_is_wrong(file: BinaryIO, path: Path, error: Exception) -> str:
    """Return in tvc's words why a file of torch.save cannot be opened, and what to do."""
    if found := re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error)):
        return (
            f"it holds more than tensors, an object of {found[1]}, whose code would run, and tvc "
            "never runs code from a file. Where the file can be trusted, save its tensors alone: "
            "torch.save(network.state_dict(), path)"
        )
    file.seek(0)
    start = file.read(100_000)
    if start[:4] == b"PK\x03\x04":
        return "it is truncated or damaged. Copy or download it again"
    if start[:1] == b"\x80":
        return "it is damaged, or holds more than tensors, and tvc never runs code from a file"
    if other := on_file(path, start, "tensors"):
        return f"it is not a file of torch.save.{other}".removesuffix(".")
    return f"it is damaged, or not a file of torch.save ({type(error).__name__})"
