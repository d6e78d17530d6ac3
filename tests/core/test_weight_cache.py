"""The cache of weight files: one download however many ask, no half files, every refusal with its
reason.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from own_files import FIGURE

from tvc_core import HybridBuilder, WeightsError, read_state_dict, remembered
from tvc_core.testing import CachedFile, cached_weights, official_weights
from tvc_core.weights import cache, download, verified
from tvc_core.weights.cache import cached_file

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net-{SHA256[:8]}.pth"


class Site(BaseHTTPRequestHandler):
    """Sends a content in two halves, and notes who asked."""

    content: bytes
    asked: list[str]
    pause: Any = None
    promised: int | None = None

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(self.promised or len(self.content)))
        self.end_headers()
        half = len(self.content) // 2
        try:
            self.wfile.write(self.content[:half])
            if self.pause is not None:
                self.pause.wait(60)
            self.wfile.write(self.content[half:])
        except OSError:
            pass  # who asked is gone

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME; nothing is remembered."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TVC_VERIFY_WEIGHTS", raising=False)
    monkeypatch.delenv("TVC_WEIGHTS_PATH", raising=False)
    monkeypatch.setattr(remembered, "_HERE", {})
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def site() -> Iterator[Any]:
    handler = type("Handler", (Site,), {"content": CONTENT, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        handler.url = f"http://127.0.0.1:{server.server_port}/{NAME}"  # type: ignore[attr-defined]
        yield handler
        if handler.pause is not None:
            handler.pause.set()
        server.shutdown()
        thread.join()


fetched = partial(cached_file, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


# -- many at once ----------------------------------------------------------------------------------


def rounds(url: str, homes: list[str], barrier: Any, said: Any) -> None:
    """Be one of the processes: fetch and open the file in one empty home after the other."""
    try:
        for home in homes:
            os.environ["TORCH_HOME"] = home
            barrier.wait(60)
            path = fetched(url)
            with path.open("rb") as file:
                verified.compare_hash(file, path, SHA256)
        said.put("")
    except BaseException:
        said.put(traceback.format_exc())


@pytest.mark.parametrize(("kind", "count"), [("fork", 2), pytest.param("spawn", 20, marks=FIGURE)])
def test_eight_processes_on_an_empty_cache_fetch_once(
    home: Path, site: Any, tmp_path: Path, kind: str, count: int
) -> None:
    context: Any = multiprocessing.get_context(kind)
    barrier, said = context.Barrier(8), context.Queue()
    homes = [str(tmp_path / f"home {number}") for number in range(count)]
    arguments = (site.url, homes, barrier, said)
    processes = [context.Process(target=rounds, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    assert [said.get(timeout=300) for _ in processes] == [""] * 8
    for process in processes:
        process.join()
    assert len(site.asked) == count
    for each in homes:
        assert names(Path(each) / "hub" / "checkpoints") == [NAME]


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("locks", ["the system's", "files", "none"])
def test_threads_fetch_once_where_there_are_locks(
    home: Path, site: Any, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    if locks == "files":
        monkeypatch.setattr(download, "fcntl", None)
    elif locks == "none":

        def no_locks(*_: int) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(download.fcntl, "flock", no_locks)
    assert in_threads(6, lambda: fetched(site.url)) == [home / NAME] * 6
    assert len(site.asked) == 1 or locks == "none"
    assert names(home) == [NAME] and (home / NAME).read_bytes() == CONTENT


def test_a_lock_file_that_a_killed_process_left_is_taken_over(
    home: Path, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(parents=True)
    (home / f"{NAME}.lock").touch()
    fetched(site.url)  # where the system has locks, the file alone says nothing
    (home / NAME).unlink()
    (home / f"{NAME}.lock").touch()
    monkeypatch.setattr(download, "fcntl", None)
    monkeypatch.setattr(download, "GIVEN_UP", 0.2)
    assert fetched(site.url).read_bytes() == CONTENT and names(home) == [NAME]


def test_a_process_that_hangs_with_the_lock_is_named(
    home: Path, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(parents=True)
    monkeypatch.setattr(download, "GIVEN_UP", 0.2)
    with download._turn(home / NAME), pytest.raises(WeightsError, match=r"another process.*lock"):
        fetched(site.url)
    assert fetched(site.url).exists()


def test_a_forked_process_does_not_keep_the_lock(home: Path, site: Any) -> None:
    """A worker that was forked during a download outlives it."""
    home.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    end = context.Event()
    with download._turn(home / NAME):
        child = context.Process(target=end.wait, args=(60,))
        child.start()
        (handle,) = download._HELD
        os.close(handle)  # as if this process had been killed
        try:  # the child may still be starting
            limit = time.monotonic() + 30
            while (taken := download._take(home / f"{NAME}.lock")) is None:
                assert time.monotonic() < limit
                time.sleep(0.01)
            os.close(taken[0])
        finally:
            end.set()
            child.join()
            download._HELD.clear()


# -- what goes wrong -------------------------------------------------------------------------------

FETCH = "import sys; from tvc_core.weights.cache import cached_file; cached_file(sys.argv[1])"


def test_after_a_kill_in_a_download_the_next_one_works(home: Path, site: Any) -> None:
    site.pause = threading.Event()
    process = subprocess.Popen([sys.executable, "-c", FETCH, site.url], stderr=subprocess.PIPE)
    try:
        limit = time.monotonic() + 60
        while not any(each.stat().st_size for each in home.glob("*draft")):
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.01)
        assert not (home / NAME).exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(names(home)) == 2  # the draft, and the lock
    site.pause.set()
    assert fetched(site.url).read_bytes() == CONTENT
    assert names(home) == [NAME]


def test_drafts_of_other_files_go_when_they_are_old(home: Path, site: Any) -> None:
    home.mkdir(parents=True)
    old, new = (home / f"other.pth.{each}.tvc-draft" for each in ("a", "b"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    fetched(site.url)
    assert names(home) == [NAME, new.name]


def test_a_server_that_stops_is_left(
    home: Path, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pause = threading.Event()
    monkeypatch.setattr(download, "STALLED", 0.3)
    text = (
        rf"{NAME} cannot be downloaded from 127.*sent nothing for 0\.3 s.*try again.*weights=None"
    )
    start = time.monotonic()
    with pytest.raises(WeightsError, match=text):
        fetched(site.url)
    assert time.monotonic() - start < 10 and names(home) == []


def test_a_server_that_never_answers_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALLED", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/{NAME}"
        with pytest.raises(WeightsError, match=r"sent nothing for 0\.3 s"):
            fetched(url)


def test_a_connection_that_ends_early_is_no_file(home: Path, site: Any) -> None:
    site.promised = 2 * len(CONTENT)
    with pytest.raises(WeightsError, match=f"ended after {len(CONTENT)} of {2 * len(CONTENT)} by"):
        fetched(site.url.replace(NAME, "unnamed.pth"))
    assert names(home) == []


def test_a_page_that_comes_instead_is_named_and_not_kept(home: Path, site: Any) -> None:
    site.content = b"<!DOCTYPE html>\n<p>Please log in"
    text = rf"should start with {SHA256[:8]} and is [0-9a-f]{{64}}; it is a web page .*DOCTYPE"
    with pytest.raises(WeightsError, match=text):
        fetched(site.url)
    assert names(home) == []


def test_a_folder_that_cannot_be_written_has_a_way_out(
    home: Path, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch").write_text("in the way", encoding="utf-8")
    text = f"{NAME} has to be downloaded, and .* cannot be written: .*TORCH_HOME.*TVC_WEIGHTS_PATH"
    with pytest.raises(WeightsError, match=text):
        fetched(site.url)
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth has to be .*weights=None"):
        HybridBuilder().from_torchvision("resnet18")
    (tmp_path / "torch").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(WeightsError, match=r"cannot be written: No space left on device\. Set"):
        fetched(site.url)
    assert names(home) == []


# -- what is in the cache --------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (cut, r"its end is missing, so it is truncated\. Delete it"),
        (flipped, r"damaged or not the official one\. Delete it"),
        (lambda _: b"", "it is empty"),
        (lambda _: b"\n<html><body>Proxy error", "a web page .*'<html><body>Proxy error'"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS.*git lfs pull"),
        (lambda _: b"GIF89a" * 20, "begins with b'GIF89a"),
        (lambda _: b"\x1f\x8b\x08" * 20, "gzip"),
    ],
)
def test_a_file_that_is_another_one_is_refused_with_what_it_is(
    home: Path, tmp_path: Path, change: Callable[[bytes], bytes], text: str
) -> None:
    with cached_weights(tmp_path / "torch", {"a": torch.ones(300)}) as file:
        content = change(file.path.read_bytes())
        file.path.write_bytes(content)
        found, expected = hashlib.sha256(content).hexdigest(), file.sha256
        start = (
            rf"{file.path}: its SHA-256 starts with {found[:8]}, its name promises {expected[:8]}"
        )
        with pytest.raises(WeightsError, match=f"(?s){start}: .*{text}"):
            read_state_dict(fetched(file.url), sha256=cache.hash_in_name(file.path.name))


def read_again(file: CachedFile) -> Any:
    return read_state_dict(fetched(file.url), sha256=file.sha256)


def test_a_link_to_another_file_is_refused_and_named(home: Path, tmp_path: Path) -> None:
    with cached_weights(tmp_path / "torch", {"a": torch.ones(3)}) as file:
        good = file.path.rename(tmp_path / "good.pth")
        torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
        file.path.symlink_to(tmp_path / "other.pth")
        with pytest.raises(WeightsError, match=r"Delete this link to .*other\.pth and build"):
            read_again(file)
        file.path.unlink()
        file.path.symlink_to(good)  # the right file is the right file
        assert read_again(file)["a"].eq(1).all()
        file.path.unlink()
        file.path.symlink_to("/dev/zero")
        with pytest.raises(WeightsError, match=r"no regular file\. Delete it"):
            read_again(file)
        file.path.unlink()
        os.mkfifo(file.path)
        with pytest.raises(WeightsError, match=r"no regular file\. Delete it"):
            read_again(file)


def test_a_link_to_nothing_is_replaced(home: Path, site: Any, tmp_path: Path) -> None:
    home.mkdir(parents=True)
    (home / NAME).symlink_to(tmp_path / "gone")
    assert not fetched(site.url).is_symlink() and (home / NAME).read_bytes() == CONTENT
    assert not (tmp_path / "gone").exists()


def test_a_change_while_a_file_is_compared_is_noticed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cached_weights(tmp_path / "torch", {"a": torch.ones(3)}) as file:
        torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
        real = verified.sha256_of

        def then_changed(opened: Any) -> str:
            found = real(opened)
            file.path.write_bytes((tmp_path / "other.pth").read_bytes())
            return found

        time.sleep(0.05)
        monkeypatch.setattr("tvc_core.weights.verified.sha256_of", then_changed)
        with pytest.raises(WeightsError, match="was changed while it was read"):
            read_again(file)


# -- folders that are only read --------------------------------------------------------------------


def test_folders_of_the_path_are_searched_first(
    home: Path, site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat, other = tmp_path / "flat", tmp_path / "other home"
    for folder in (flat, other / "hub" / "checkpoints"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("TVC_WEIGHTS_PATH", os.pathsep.join([str(flat), "", str(other)]))
    (other / "hub" / "checkpoints" / NAME).write_bytes(CONTENT)
    assert fetched(site.url) == other / "hub" / "checkpoints" / NAME
    (flat / NAME).write_bytes(CONTENT)
    assert fetched(site.url) == flat / NAME
    assert site.asked == [] and not home.exists()
    (flat / NAME).unlink()
    (other / "hub" / "checkpoints" / NAME).unlink()
    assert fetched(site.url) == home / NAME and names(flat) == []


def test_what_the_path_has_is_compared_alike(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with official_weights(tmp_path / "made", "resnet18", verify=True) as files:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
        monkeypatch.setenv("TVC_WEIGHTS_PATH", str(files["resnet18"].parent))
        model = HybridBuilder().from_torchvision("resnet18")
        assert torch.equal(
            model.fc.bias, torch.load(files["resnet18"], weights_only=True)["fc.bias"]
        )
        files["resnet18"].write_bytes(flipped(files["resnet18"].read_bytes()))
        with pytest.raises(WeightsError, match="Delete it, or leave its folder out of TVC_WEIGHTS"):
            HybridBuilder().from_torchvision("resnet18")
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("folder", ["/misspelt", "~nobody-here/weights"])
def test_a_folder_of_the_path_that_is_not_there_is_said(
    home: Path, site: Any, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("TVC_WEIGHTS_PATH", folder)
    with pytest.warns(UserWarning, match=f"TVC_WEIGHTS_PATH names '{folder}', which is no folder"):
        fetched(site.url)


@pytest.mark.parametrize(("value", "said"), [("false", 1), ("off", 1), ("1", 0), ("", 0)])
def test_a_value_of_the_switch_that_is_none_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, said: int
) -> None:
    monkeypatch.setattr(verified, "_warned", False)
    with cached_weights(tmp_path / "torch", {"a": torch.ones(3)}) as file:
        monkeypatch.setenv("TVC_VERIFY_WEIGHTS", value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read_again(file)
            read_again(file)
    texts = [str(each.message) for each in caught if "neither 0 nor 1" in str(each.message)]
    assert len(texts) == said and all(repr(value) in text for text in texts)


# -- what is built stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["first read", "by the table"])
def test_a_model_does_not_change_with_its_file(home: Path, tmp_path: Path, again: bool) -> None:
    with official_weights(tmp_path / "made", "mobilenet_v3_small", verify=True) as files:
        (path,) = files.values()
        time.sleep(2 * verified._STEADY)
        if again:
            HybridBuilder().from_torchvision("mobilenet_v3_small")
            assert list((remembered.folder() / "tables").iterdir())
        model = HybridBuilder().from_torchvision("mobilenet_v3_small").eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        images = torch.randn(1, 3, 64, 64)
        expected = model(images)
        size = path.stat().st_size
        with path.open("r+b") as file:  # in place, as a mapping of it would see
            file.write(b"\xff" * size)
        assert torch.equal(model(images), expected)
        os.truncate(path, 10)
        assert torch.equal(model(images), expected)
        path.unlink()
        found = model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in before.items())


def test_an_ordinary_model_that_another_thread_builds_is_initialized(
    home: Path, tmp_path: Path
) -> None:
    end, models = threading.Event(), []

    def ordinary() -> None:
        while not end.is_set():
            models.append(torchvision.models.mobilenet_v3_small())

    with official_weights(tmp_path / "made", "mobilenet_v3_small", verify=True) as files:
        thread = threading.Thread(target=ordinary)
        thread.start()
        try:
            expected = torch.load(*files.values(), weights_only=True)
            for _ in range(4):
                hybrid = HybridBuilder().from_torchvision("mobilenet_v3_small")
                found = hybrid.state_dict()
                assert all(torch.equal(found[key], value) for key, value in expected.items())
        finally:
            end.set()
            thread.join()
    assert models
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):  # He's rule for the outputs
                std = (2 / (module.out_channels * module.weight[0, 0].numel())) ** 0.5
                assert abs(module.weight.std() / std - 1) < 6 / module.weight.numel() ** 0.5
            elif isinstance(module, torch.nn.Linear):
                assert abs(module.weight.std() / 0.01 - 1) < 0.05 and not module.bias.any()
            elif isinstance(module, torch.nn.BatchNorm2d):
                assert module.weight.eq(1).all() and not module.bias.any()
