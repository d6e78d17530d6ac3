"""What a file is, by its first bytes, and why one of torch.save cannot be opened."""

from __future__ import annotations

import re
from pathlib import Path

from ..advice.words import on_file

__all__ = ["HEAD", "foreign_kind", "has_safetensors_header", "why_not_opened"]

HEAD = 100_000
"""How much of a file is looked at [bytes]."""


def has_safetensors_header(head: bytes, size: int) -> bool:
    """Tell whether a file of `size` bytes begins as safetensors do: with the length of a header in
    JSON.
    """
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def foreign_kind(head: bytes) -> str:
    """Return what a file is that holds no weights and is often taken for one that does, else an
    empty string.
    """
    start = head[:100].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return (
            "the pointer of Git LFS (it begins with 'version https://git-lfs') that stands for a "
            "file; fetch the file by 'git lfs pull'"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        shown = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
        return f"a web page (it begins with {shown!r}), which a server or a proxy has sent instead"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it first"
    if start.startswith((b"{", b"[")):
        return "JSON; the index of a sharded file is known by its name, ending in .index.json"
    return ""


def why_not_opened(path: Path, head: bytes, error: Exception) -> str:
    """Return in tvc's words why torch does not open a file, and what to do; torch's own text
    advises to run what is in the file.

    Args:
        path: the file.
        head: its first bytes.
        error: what torch raised.
    """
    text = " ".join(str(error).split())
    if found := re.search(r"(?:GLOBAL|global:?|class|function) ([A-Za-z_][\w.]*\.[\w.]*\w)", text):
        return (
            f"it holds more than tensors, an object of {found[1]}, whose code would run, and tvc "
            "never runs code from a file. Where the file can be trusted, load it with torch and "
            "pass what is in it, as checkpoint['model'], or save its tensors alone: "
            "torch.save(network.state_dict(), path)"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program; save its state_dict() instead"
    if not head:
        return "it is empty"
    if head[:4] == b"PK\x03\x04":
        return "it is truncated or damaged. Copy or download it again"
    if head[:1] == b"\x80":
        return "it is damaged, or holds more than tensors, and tvc never runs code from a file"
    if other := on_file(path, head, "tensors"):
        return f"it is not a file of torch.save.{other}".removesuffix(".")
    return f"it is damaged, or not a file of torch.save ({type(error).__name__})"
