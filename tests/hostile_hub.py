"""Repositories that want something, and what the refusal of each has to say."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from typing import Any

from fake_hub import FakeHub, Handler
from hub_files import forged, with_header

EVIL = b"import os; os.system('touch pwned')"


def _files(hub: FakeHub, name: str, files: dict[str, bytes]) -> str:
    return hub.put(f"evil/{name}", files)


def _fault(hub: FakeHub, name: str, answer: Callable[[Handler, str], bool]) -> None:
    def fault(handler: Handler) -> bool:
        return f"evil/{name}" in handler.path and answer(handler, handler.path)

    hub.faults.append(fault)


def make(hub: FakeHub, model: bytes, other: str) -> dict[str, str]:
    """Put hostile repositories on a hub.

    Args:
        hub: the hub.
        model: a saved model, of which they make others.
        other: address of a server that must not be asked.

    Returns:
        What the error has to say, by what is pulled.
    """
    good = {"model.safetensors": model, "README.md": b"hi"}
    expected: dict[str, str] = {}

    def add(name: str, says: str, files: dict[str, bytes] | None = None, at: str = "") -> None:
        commit = _files(hub, name, good if files is None else files)
        expected[f"evil/{name}{at.format(commit=commit)}"] = says

    add("parent", "no name inside a folder", {**good, "../x": EVIL})
    add("absolute", "no name inside a folder", {**good, "/etc/x.safetensors": model})
    add("backslash", "no name inside a folder", {**good, "..\\x.safetensors": model})
    add("inner", "no name inside a folder", {"a/../../x.safetensors": model})
    add("pickle", "can hold some: pytorch_model.bin", {"pytorch_model.bin": b"\x80\x04."})
    add("beside", "can hold some: optimizer.pkl", {**good, "optimizer.pkl": b"\x80\x04."})
    add("code", "can hold some: modeling.py", {**good, "modeling.py": EVIL})
    add("nothing", "no .safetensors files", {"README.md": b"hi"})
    add("several", "has 2 .safetensors files", {"a.safetensors": model, "b.safetensors": model})
    add("plugin", "acme-secret", {"model.safetensors": _other(model, "acme-secret:net")})
    add("network", "does not fit", {"model.safetensors": _other(model, "tvc-resnet:resnet34")})
    add("shape", "has the shape", {"model.safetensors": with_header(model, _swapped)})
    add("option", "must not set it", {"model.safetensors": _opening(model)})
    add("digest", "hash that it was written with", {"model.safetensors": _flipped(model)})
    add("lies", "bytes, and its header speaks of", {"model.safetensors": model[:-64]})
    add("twice", "twice", {"model.safetensors": with_header(model, _doubled)})
    add("longer", "does not begin as one", {"model.safetensors": _long(1 << 30)})
    add("long", "its header has", {"model.safetensors": _long(11 << 20)})
    add("pointer", "does not begin as one", {"model.safetensors": b"version https://git-lfs.gi"})
    add("page", "does not begin as one", {"model.safetensors": b"<!doctype html><html></html>"})
    add("short", "does not begin as one", {"model.safetensors": b"abc"})
    add("tensors", "tensors and no recipe", {"model.safetensors": with_header(model, _without)})
    pinned = _files(hub, "moved", good)
    last = _files(hub, "moved", {**good, "README.md": b"other"})
    expected[f"evil/moved@{pinned}"] = "A commit does not move"
    hub.tags[f"moved {pinned}"] = last
    _fault(hub, "moved", lambda h, path: "/revision/" in path and _listed(h, "moved", last))

    def at_files(name: str, says: str, answer: Callable[[Handler], Any]) -> None:
        def fault(handler: Handler, path: str) -> bool:
            if "/resolve/" not in path:
                return False
            answer(handler)
            return True

        add(name, says)
        _fault(hub, name, fault)

    def at_list(name: str, says: str, answer: Callable[[Handler], Any]) -> None:
        def fault(handler: Handler, path: str) -> bool:
            if "/revision/" not in path:
                return False
            answer(handler)
            return True

        add(name, says)
        _fault(hub, name, fault)

    sha = hashlib.sha256(model).hexdigest()

    def sent(data: bytes, **headers: str) -> Callable[[Handler], Any]:
        given = {"ETag": f'"{sha}"', **headers}
        return lambda h: h.bytes(data, {k.replace("_", "-"): v for k, v in given.items()})

    at_files("redirect", "sends its readers on to", lambda h: h.redirect(f"{other}/x"))
    at_files("nowhere", "and not to an address", lambda h: h.send(302, b""))
    at_files("port", "and not to an address", lambda h: h.redirect("http://127.0.0.1:99999/x"))
    at_files("brackets", "and not to an address", lambda h: h.redirect("http://[::1/x"))
    at_files("scheme", "sends its readers on to", lambda h: h.redirect("file:///etc/passwd"))
    at_files("user", "sends its readers on to", lambda h: h.redirect(f"http://a@{other[7:]}/x"))
    at_files("slashes", "sends its readers on to", lambda h: h.redirect(f"{other[5:]}/x"))
    at_files("round", "redirects more than", lambda h: h.redirect(h.path))
    at_files("commit", "answers with the commit", sent(model, X_Repo_Commit="0" * 40))
    at_files("changed", "changed on the way", sent(_flipped(model)))
    at_files("larger", "its size is", sent(model + b"x"))
    at_files("smaller", "its size is", sent(model[:-1]))
    at_files("etag", "its SHA-256 is", sent(model, X_Linked_Etag=f'"{"0" * 64}"'))
    at_files("packed", "packs what it sends", sent(gzip.compress(model), Content_Encoding="gzip"))
    at_files("range", "were asked for", lambda h: _ranged(h, model, sha))
    at_files("cut", "1,000 of", lambda h: _cutting(h, model, sha))
    at_list("elsewhere", "sends its readers on to", lambda h: h.redirect(f"{other}/api"))
    at_list("text", "not that of a hub", lambda h: h.send(200, b"hello"))
    at_list("deep", "not that of a hub", lambda h: h.send(200, b"[" * 100_000))
    at_list("kinds", "not that of a hub", lambda h: h.json({"sha": 3, "siblings": [None]}))
    at_list("repeats", "not that of a hub", lambda h: h.json(_repeating(last)))
    at_list("bomb", "too long to be one", lambda h: h.send(200, b" " * (11 << 20)))
    at_list("denied", "401", lambda h: h.refuse(401))
    at_list("gone", "404", lambda h: h.refuse(404))
    at_list("broken", "500", lambda h: h.refuse(500))
    return expected


def _other(model: bytes, backbone: str) -> bytes:
    return forged(model, backbone__name=backbone)


def _long(length: int) -> bytes:
    """Return what says that it has a long header, of 12 MB at most."""
    return length.to_bytes(8, "little") + b"{" + b" " * (12 << 20)


def _opening(model: bytes) -> bytes:
    """Ask timm for a network whose weights lie at an address."""
    return forged(
        model,
        backbone__name="tvc-timm:timm/resnet18",
        backbone__options={"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"}},
    )


def _flipped(model: bytes) -> bytes:
    return model[:-5] + bytes([model[-5] ^ 1]) + model[-4:]


def _swapped(text: str) -> str:
    """Write the shape of a tensor the other way round; the length stays."""
    found = json.loads(text)
    found["features.0.weight"]["shape"].reverse()
    return json.dumps(found)


def _without(text: str) -> str:
    """Leave what tvc wrote out, as other tools write files."""
    return json.dumps({**json.loads(text), "__metadata__": {"format": "pt"}})


def _doubled(text: str) -> str:
    return '{"__metadata__":{},' + text[1:]


def _repeating(commit: str) -> dict[str, Any]:
    """List a name twice, of which one reader may take the first and another the last."""
    return {"sha": commit, "siblings": [{"rfilename": "model.safetensors"}] * 2}


def _listed(handler: Handler, name: str, commit: str) -> bool:
    handler.listing(f"evil/{name}", commit)
    return True


def _ranged(handler: Handler, model: bytes, sha: str) -> None:
    """Say another range than what was asked for."""
    headers = {"ETag": f'"{sha}"'}
    if handler.command == "HEAD":
        handler.bytes(model, headers)
    else:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-12/{len(model)}")
        handler.send_header("Content-Length", "8")
        handler.end_headers()
        handler.wfile.write(model[5:13])


def _cutting(handler: Handler, model: bytes, sha: str) -> None:
    if handler.command == "HEAD" or int(handler.headers["range"][6:].split("-")[0]) <= 8:
        handler.bytes(model, {"ETag": f'"{sha}"'})
    else:
        handler.cut(1000, model)
