"""A hub on this machine, as far as its client and tvc-hub ask it, that keeps the rules or breaks
one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "t" * 34

Fault = Callable[["Handler"], bool]
"""Answers a request in its own way and returns true, or leaves it to the hub."""


class FakeHub:
    """Repositories by their names, each a list of commits with their files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.tags: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.lfs = True
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, token
        self.agents: set[str] = set()
        self.sent: dict[str, int] = {}  # bytes of bodies by path
        self.faults: list[Fault] = []
        self.url = ""
        self.server: Any = None

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Make a commit, and return it."""
        commits = self.commits.setdefault(name, [])
        text = repr((name, len(commits), sorted((k, v) for k, v in files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        commits.append((commit, files))
        return commit

    def close(self) -> None:
        """End, so that no one answers."""
        self.server.shutdown()
        self.server.server_close()

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits.get(name, [])
        revision = self.tags.get(revision, revision)
        found = [each for each in commits if each[0] == revision]
        return found[0] if found else commits[-1] if revision == "main" and commits else None

    def is_large(self, name: str) -> bool:
        return self.lfs and name.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def answer(self) -> None:
        token = self.headers.get("authorization")
        self.hub.asked.append((self.command, self.path, token))
        self.hub.agents.add(self.headers.get("user-agent", ""))
        length = int(self.headers.get("content-length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.parts = [unquote(each) for each in urlsplit(self.path).path.strip("/").split("/")]
        if any(fault(self) for fault in self.hub.faults):
            return
        if self.command in ("POST", "PUT"):
            self.write()
        elif self.parts[:2] == ["api", "models"] and len(self.parts) >= 5:
            self.listing("/".join(self.parts[2:4]), "/".join(self.parts[5:]) or "main")
        elif len(self.parts) > 4 and self.parts[2] == "resolve":
            self.file("/".join(self.parts[:2]), self.parts[3], "/".join(self.parts[4:]))
        else:
            self.refuse(404)

    def listing(self, name: str, revision: str) -> None:
        found = self.hub.at(name, revision)
        if found is None:
            return self.refuse(404)
        siblings = []
        for each, content in found[1].items():
            row: dict[str, Any] = {"rfilename": each, "size": len(content)}
            row["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if self.hub.is_large(each):
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(row)
        return self.json({"id": name, "sha": found[0], "siblings": siblings})

    def file(self, name: str, revision: str, path: str) -> None:
        found = self.hub.at(name, revision)
        if found is None or path not in found[1]:
            return self.refuse(404)
        content = found[1][path]
        large = self.hub.is_large(path)
        digest = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content))
        if not large:
            digest.update(content)
        headers = {"X-Repo-Commit": found[0], "ETag": f'"{digest.hexdigest()}"'}
        if large:
            headers["X-Linked-Etag"] = headers["ETag"]
            headers["X-Linked-Size"] = str(len(content))
        return self.bytes(content, headers)

    def bytes(self, content: bytes, headers: dict[str, str]) -> None:
        status, said = 200, self.headers.get("range")
        size = len(content)
        if said:
            start, _, stop = said.removeprefix("bytes=").partition("-")
            content = content[int(start) : int(stop) + 1]
            status = 206
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(content) - 1}/{size}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            path = urlsplit(self.path).path
            self.hub.sent[path] = self.hub.sent.get(path, 0) + len(content)
            self.wfile.write(content)

    # -- pushes ------------------------------------------------------------------------------------

    def write(self) -> None:
        path = "/".join(self.parts)
        if self.parts[0] == "store":  # presigned: no token
            self.hub.large[self.parts[1]] = self.body
            return self.json({})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.refuse(401)
        if path == "api/repos/create":
            said = json.loads(self.body)
            name = f"{said.get('organization') or 'user'}/{said['name']}"
            self.hub.commits.setdefault(name, [])
            return self.json({"url": f"{self.hub.url}/{name}", "name": name})
        if path == "api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path.endswith("objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/store/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})
        if "preupload" in self.parts:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if self.hub.is_large(each["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(self.body)["files"]
            ]
            return self.json({"files": files})
        if "commit" in self.parts:
            return self.commit("/".join(self.parts[2:4]))
        return self.refuse(404)

    def commit(self, name: str) -> None:
        last = self.hub.at(name, "main")
        files = dict(last[1]) if last else {}
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.put(name, files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self.json({"success": True, "commitOid": commit, "commitUrl": url})

    # -- answers -----------------------------------------------------------------------------------

    def json(self, data: Any) -> None:
        self.send(200, json.dumps(data).encode())

    def refuse(self, status: int, **headers: str) -> None:
        self.send(status, b"{}", **headers)

    def redirect(self, target: str) -> None:
        self.send(302, b"", Location=target)

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def cut(self, after: int, content: bytes) -> None:
        """Promise all, send a part and close."""
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if self.headers.get("range") else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + after])
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


class Server(ThreadingHTTPServer):
    """A server whose readers may leave when they have what they want."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def running(hub: FakeHub | None = None) -> Iterator[FakeHub]:
    """Run a hub on a free port."""
    hub = hub or FakeHub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.server = server
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
