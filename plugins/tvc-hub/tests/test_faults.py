"""What goes wrong on the way: a reason, and nothing half done."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_hub import FakeHub, Handler, running
from tvc_hub import HubError, pull, push

from tvc_core import TvcError


def at(part: str, answer: Callable[[Handler], Any]) -> Callable[[Handler], bool]:
    """Return a fault of the requests whose path has a part."""

    def fault(handler: Handler) -> bool:
        if part not in f"{handler.command} {handler.path}":
            return False
        answer(handler)
        return True

    return fault


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client try again at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


PARTS = ("repos/create", "validate-yaml", "preupload", "objects/batch", "PUT /store", "/commit")
STATUSES = (401, 403, 404, 409, 429, 500)
REFUSED = [
    # each place and each status at least once; all pairs in the sweep
    pytest.param(part, status, marks=[pytest.mark.sweep] * (number not in (row, row + 1)))
    for row, part in enumerate(PARTS)
    for number, status in enumerate(STATUSES)
    if (part, status) != ("repos/create", 409)  # the repository is there already, which is fine
]


@pytest.mark.parametrize(("part", "status"), REFUSED)
def test_a_refused_push_says_why(hub: FakeHub, path: Path, part: str, status: int) -> None:
    hub.faults.append(at(part, lambda h: h.refuse(status)))
    with pytest.raises(HubError, match=f"user/pets was not pushed: {status}: the hub"):
        push(path, "user/pets", license="mit", endpoint=hub.url)
    assert not hub.commits.get("user/pets")


@pytest.mark.parametrize("part", ["repos/create", "preupload", "objects/batch", "PUT", "/commit"])
def test_a_push_that_is_cut_says_so(hub: FakeHub, path: Path, part: str) -> None:
    hub.faults.append(at(part, hang_up))
    with pytest.raises(HubError, match=r"was not pushed: http://127\.0\.0\.1:.*ProtocolError"):
        push(path, "user/pets", license="mit", endpoint=hub.url)
    assert not hub.commits.get("user/pets")


@pytest.mark.parametrize("part", ["repos/create", "preupload", "objects/batch", "/commit"])
def test_a_push_that_is_redirected_sends_nothing_there(hub: FakeHub, path: Path, part: str) -> None:
    with running() as other:
        hub.faults.append(
            at(part, lambda h: h.send(307, b"", Location=f"{other.url}/x"))
        )  # fmt: skip
        with pytest.raises(HubError, match="sends the client on to"):
            push(path, "user/pets", license="mit", endpoint=hub.url)
        assert not other.asked
    assert not hub.commits.get("user/pets")


def in_parts(hub: FakeHub, end: str) -> Callable[[Handler], bool]:
    """Return what takes a large file in parts, and is told at an address that all are there."""

    def fault(handler: Handler) -> bool:
        if "objects/batch" in handler.path:
            (each,) = json.loads(handler.body)["objects"]
            parts = {
                f"{n + 1:05}": f"{hub.url}/store/{n}" for n in range(-(-each["size"] // 1000000))
            }
            upload = {"href": f"{end}/complete", "header": {"chunk_size": "1000000", **parts}}
            handler.json(
                {"transfer": "multipart", "objects": [{**each, "actions": {"upload": upload}}]}
            )
        elif handler.command == "PUT":
            hub.large[handler.parts[1]] = handler.body
            handler.send(200, b"", ETag='"x"')
        elif handler.path == "/complete":
            said = json.loads(handler.body)
            pieces = [hub.large[str(each["partNumber"] - 1)] for each in said["parts"]]
            hub.large[said["oid"]] = b"".join(pieces)
            handler.json({})
        else:
            return False
        return True

    return fault


def test_a_large_file_goes_in_parts(hub: FakeHub, path: Path) -> None:
    hub.faults.append(in_parts(hub, hub.url))
    push(path, "user/pets", license="mit", endpoint=hub.url)
    assert hub.commits["user/pets"][-1][1]["model.safetensors"] == path.read_bytes()


def test_that_all_parts_are_there_is_told_no_one_else(hub: FakeHub, path: Path) -> None:
    with running() as other:
        hub.faults.append(in_parts(hub, other.url))
        with pytest.raises(HubError, match="sends the client on to"):
            push(path, "user/pets", license="mit", endpoint=hub.url)
        assert not other.asked


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ({"train.py": b"1", "a.txt": b""}, r"has train\.py, .* takes nothing from it"),
        ({"old.onnx.certificate.json": b"{}", ".gitattributes": b""}, r"has old\S+ from before"),
    ],
)
def test_what_an_earlier_push_left_is_told(
    hub: FakeHub, path: Path, before: dict[str, bytes], says: str
) -> None:
    hub.put("user/pets", before)
    with pytest.warns(UserWarning, match=says):
        push(path, "user/pets", license="mit", endpoint=hub.url)


@pytest.mark.parametrize("name", ["what?.txt", "a|b.md", "a:b.txt", "~notes.txt"])
def test_a_name_that_no_pull_would_take_is_not_pushed(hub: FakeHub, path: Path, name: str) -> None:
    other = path.with_name(name)
    other.write_text("notes")
    with pytest.raises(HubError, match=r"'tvc pull' takes nothing from .* such a name"):
        push(path, "user/pets", license="mit", endpoint=hub.url, extra=[other])
    assert not hub.asked
    other.rename(path.with_name("what # now é.txt"))
    push(path, "user/pets", license="mit", endpoint=hub.url, extra=path.parent.glob("what*"))
    assert pull("user/pets", endpoint=hub.url).path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("action", ["upload", "verify"])
def test_an_upload_goes_to_no_strange_address(hub: FakeHub, path: Path, action: str) -> None:
    with running() as other:

        def batch(handler: Handler) -> None:
            (each,) = json.loads(handler.body)["objects"]
            actions = {"upload": {"href": f"{hub.url}/store/{each['oid']}"}}
            actions[action] = {"href": f"{other.url}/store/x"}
            handler.json({"transfer": "basic", "objects": [{**each, "actions": actions}]})

        hub.faults.append(at("objects/batch", batch))
        with pytest.raises(HubError, match=r"wants the file at|sends the client on to"):
            push(path, "user/pets", license="mit", endpoint=hub.url)
        assert not other.asked


def test_a_file_that_the_hub_leaves_out_is_named(hub: FakeHub, path: Path) -> None:
    def preupload(handler: Handler) -> None:
        files = [
            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": "yaml" in each["path"]}
            for each in json.loads(handler.body)["files"]
        ]
        handler.json({"files": files})

    hub.faults.append(at("preupload", preupload))
    with pytest.raises(HubError, match=r"without recipe.yaml, .*\.gitignore"):
        push(path, "user/pets", license="mit", endpoint=hub.url)


def test_a_commit_that_cannot_be_looked_at_again_is_told(hub: FakeHub, path: Path) -> None:
    hub.faults.append(at("/revision/", lambda h: h.refuse(500)))
    with pytest.warns(UserWarning, match=r"was pushed, and could not be looked at again.*500"):
        assert push(path, "user/pets", license="mit", endpoint=hub.url).commit


def files_in(folder: Path) -> set[Path]:
    return {each for each in folder.rglob("*") if each.is_file()}


def test_how_long_to_wait_is_said(hub: FakeHub, path: Path) -> None:
    hub.faults.append(at("/", lambda h: h.refuse(429, Retry_After="37")))
    with pytest.raises(HubError, match=r"429: .* wait a while, 37 seconds$"):
        pull("user/pets", endpoint=hub.url)


def test_what_a_hub_says_is_printed_plainly(hub: FakeHub) -> None:
    hub.faults.append(at("/", lambda h: h.refuse(403, X_Error_Message="ask\x9bhere\x85ok")))
    with pytest.raises(HubError, match=r"It says: ask here ok$"):
        pull("user/pets", endpoint=hub.url)


def test_a_repository_with_another_name_is_told(hub: FakeHub, path: Path) -> None:
    hub.put("user/new", {"model.safetensors": path.read_bytes()})
    old = at("/user/old", lambda h: h.redirect(h.path.replace("user/old", "user/new")))
    hub.faults.append(old)
    with pytest.warns(UserWarning, match="user/old: the hub has it under another name now, user/n"):
        assert pull("user/old", endpoint=hub.url).path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("status", [401, 404, 416, 500, 503])
@pytest.mark.parametrize("part", ["/revision/", "HEAD", "GET /user/pets/resolve"])
def test_a_refused_pull_says_why(hub: FakeHub, path: Path, part: str, status: int) -> None:
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    hub.faults.append(at(part, lambda h: h.refuse(status, X_Error_Message="not for you")))
    before = files_in(path.parent)
    with pytest.raises(HubError, match=f"user/pets.*: {status}: the hub .* It says: not for you"):
        pull("user/pets", endpoint=hub.url)
    assert files_in(path.parent) == before


@pytest.mark.parametrize("first", [0, 8, 500_000, 2_000_000])
def test_a_cut_is_mended_where_the_rest_comes(hub: FakeHub, path: Path, first: int) -> None:
    model = path.read_bytes()
    hub.put("user/pets", {"model.safetensors": model})
    cuts = []

    def cut_once(handler: Handler) -> bool:
        start = int((handler.headers.get("range") or "bytes=0-").split("=")[1].split("-")[0])
        if handler.command != "GET" or start <= 8 or cuts:
            return False
        cuts.append(start)
        handler.cut(first, model)
        return True

    hub.faults.append(cut_once)
    assert pull("user/pets", endpoint=hub.url).path.read_bytes() == model
    assert cuts


def test_a_hub_that_hangs_up_is_no_end_of_the_story(hub: FakeHub, path: Path) -> None:
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    hub.faults.append(at("/resolve/", hang_up))
    before = files_in(path.parent)
    with pytest.raises(HubError, match="ProtocolError"):
        pull("user/pets", endpoint=hub.url)
    assert files_in(path.parent) == before


def test_a_hub_without_ranges_sends_all(hub: FakeHub, path: Path) -> None:
    model = path.read_bytes()
    hub.put("user/pets", {"model.safetensors": model})

    def whole(handler: Handler) -> bool:
        if "/resolve/" in handler.path:
            del handler.headers["range"]
        return False

    hub.faults.append(whole)
    assert pull("user/pets", endpoint=hub.url).path.read_bytes() == model


def test_a_disk_without_room_is_named_before_the_rest_is_fetched(
    hub: FakeHub, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage())
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    before = files_in(path.parent)
    with pytest.raises(HubError, match="has room for 1,000"):
        pull("user/pets", endpoint=hub.url)
    assert sum(hub.sent.values()) < 100_000
    assert files_in(path.parent) == before


@pytest.mark.parametrize("limit", [4, 20_000, 1_000_000])
def test_a_full_disk_leaves_nothing(hub: FakeHub, path: Path, limit: int) -> None:
    """The system itself refuses, at a size that no file may exceed (Python ignores the signal)."""
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    before = files_in(path.parent)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(HubError, match="cannot be written: File too large"):
            pull("user/pets", endpoint=hub.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert files_in(path.parent) == before


def test_a_folder_that_cannot_be_written_to_is_named(hub: FakeHub, path: Path) -> None:
    (path.parent / "cache").write_text("a file where a folder is to be")
    hub.put("user/pets", {"model.safetensors": path.read_bytes()})
    with pytest.raises(TvcError, match="cannot be written: Not a directory"):
        pull("user/pets", endpoint=hub.url)


def test_without_a_home_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", none)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HubError, match=r"no folder to keep what is pulled.*Set XDG_CACHE_HOME"):
        pull("user/pets")
