"""Say what a file is that was to hold weights and does not, by how it begins."""

from __future__ import annotations

__all__ = ["kind_of_content"]


def kind_of_content(head: bytes) -> str:
    """Return what a file is that cannot hold weights, with what it begins with and what to do;
    empty where its beginning does not tell.

    Args:
        head: its first bytes; 64 are enough.
    """
    start = head.lstrip().lower()
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return (
            "the pointer of Git LFS (it begins with 'version https://git-lfs') that stands for a "
            "file; fetch the file by 'git lfs pull'"
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        shown = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace").strip()
        return f"a web page (it begins with {shown!r}), which a server or a proxy has sent instead"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it first"
    if start.startswith((b"{", b"[")):
        return "JSON; the index of a sharded file is known by its name, ending in .index.json"
    return ""
