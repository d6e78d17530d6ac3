"""A save leaves the old file or the new one, whatever fails on the way, at whatever call."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_files import FIGURE, metadata_of

from tvc_core import WeightsError

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import os, signal, sys, tvc_core
from torch import nn
class Net(nn.Sequential): pass
net = Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
          nn.Linear(4, 2))
model = tvc_core.HybridBuilder().from_module(net, stem="0", stages=["1"], head="4")
path = sys.argv[1]
model.save(path, metadata={"n": 1})
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            model.save(path, metadata={"n": 2})
        except tvc_core.WeightsError:
            os._exit(3)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Forks a child for each line, which waits to be traced and then saves."""

CALLS = ("write", "fsync", "fchmod", "rename", "openat", "close", "unlink", "flock", "getdents64")
"""Calls of a save: those that write, and the others that it depends on."""

KILL, ERRORS = "signal=KILL", ("error=ENOSPC", "error=EIO")


class Saves:
    """A process that saves a model when it is asked to, with a fault in it."""

    def __init__(self, path: Path, temporary: Path) -> None:
        self.path = path
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(temporary)},
            cwd=ROOT,
            text=True,
        )

    def _line(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def save(self, *options: str) -> tuple[int, str]:
        """Return how a child that is traced ended: 0, 3 for a WeightsError, or minus the signal;
        and what strace said.
        """
        assert self._server.stdin is not None
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        child = self._line()
        tracer = subprocess.Popen(
            ["strace", "-p", str(child), *options], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        while "attached" not in tracer.stderr.readline():
            pass
        os.kill(child, signal.SIGCONT)
        code = self._line()
        said = tracer.stderr.read()
        tracer.wait()
        return code, said

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture
def saves(tmp_path: Path) -> Iterator[Saves]:
    other = Path("/dev/shm")  # another file system
    found = Saves(tmp_path / "m.safetensors", other if other.is_dir() else tmp_path)
    yield found
    found.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("most", [16, pytest.param(None, marks=FIGURE, id="all")])
def test_a_fault_at_every_call_leaves_the_old_or_the_new_file(
    saves: Saves, seed: int, most: int | None
) -> None:
    path = saves.path
    code, said = saves.save("-e", f"trace={','.join(CALLS)}")
    assert code == 0 and metadata_of(path) == {"n": 2}
    calls = Counter(re.findall(r"^(\w+)\(", said, re.MULTILINE))
    assert calls["write"] >= 10 and calls["fsync"] == 2 and calls["rename"] == 1, calls
    points = [
        (call, number + 1, fault)
        for call in calls
        for number in range(calls[call])
        for fault in (KILL, *ERRORS)
    ]
    if most is not None:
        points = random.Random(seed).sample(points, most)
    saves.save("-e", "trace=none", "-e", f"inject=rename:{KILL}")  # a leftover from the beginning
    before, ends = path.read_bytes(), Counter[int]()
    for call, number, fault in points:
        path.write_bytes(before)
        old = metadata_of(path)
        code, said = saves.save("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}")
        what = (call, number, fault, code)
        assert "INJECTED" in said or code == -signal.SIGKILL, what
        after, there = path.read_bytes(), [each.name for each in path.parent.iterdir()]
        assert len(there) <= 2, (what, there)  # the file, and what one kill has left
        if code == 0:  # what failed was of no importance, or was done again
            assert metadata_of(path) == {"n": 2}, what
            assert there == [path.name] or call in ("getdents64", "openat", "flock", "unlink"), what
        elif code == 3:
            assert after == before, what
            assert there == [path.name] or call in ("getdents64", "openat", "flock", "unlink"), what
        else:
            assert code == -signal.SIGKILL and fault == KILL, what
            assert after == before or metadata_of(path) in ({"n": 2}, old), what
        assert code == 3 or fault == KILL or call not in ("write", "rename"), what
        ends[code] += 1
    assert most or (ends[3] >= 20 and ends[-signal.SIGKILL] >= 20), ends
    code, _ = saves.save("-e", "trace=none")
    assert code == 0 and [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_disk_that_fills_up_anywhere_leaves_the_old_file(tiny: Any, tmp_path: Path) -> None:
    """A real limit: the call that crosses it writes a part, and the next one fails."""
    model, path = tiny(), tmp_path / "m.safetensors"
    model.save(path)
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 1, 8, 9, 5000, len(before) // 2, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            with pytest.raises(WeightsError, match="cannot be written: File too large"):
                model.save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    model.save(path)
    assert path.read_bytes() == before


def test_a_file_that_vanishes_or_cannot_be_looked_at_is_cleared_away(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a fault between making the draft and filling it."""

    def fails(self: Path) -> bool:
        raise OSError(5, "Input/output error")

    model = tiny()
    open_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", fails)
        with pytest.raises(WeightsError, match="Input/output error"):
            model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
    if open_files:
        assert len(list(Path("/proc/self/fd").iterdir())) == open_files
