"""Run a plugin's code so that it can hang without holding up anybody, and leave the process as it
was.

The code runs in a thread, and the caller waits for it. Nothing else ends a wait that the plugin has
begun: a signal belongs to the user, and a process could not hand over what was imported
(docs/explanation/architecture.md, "The hook layer").
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import PluginError, RegistryWarning
from .process_state import ProcessState, StreamGuard

__all__ = ["Guard", "Run", "guarding", "import_timeout"]

DEFAULT_TIMEOUT = 10.0
"""What a plugin's import and hooks may take together [s]."""

_LOADING = threading.Lock()
"""Held while plugins are loaded: two threads must not look at what the process shares at the same
time.
"""

_THREAD = threading.local()
"""`loading` is true in a thread while it runs a plugin's code."""

_HUNG: set[str] = set()
"""Top-level packages of modules whose import hung. Their locks are held for ever."""


class _HangError(Exception):
    """A plugin's code did not come back in time; the argument is the stack at which it was left."""


class _Worker(threading.Thread):
    """A thread that does one job after another, until it is given None."""

    def __init__(self) -> None:
        super().__init__(name="tvc plugin loader", daemon=True)
        self.jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self.results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                self.results.put((job(), None))
            except BaseException as error:  # it is raised again in the thread that waits
                self.results.put((None, error))

    def imports(self) -> set[str]:
        """Return the packages that it is in the middle of importing."""
        frame, found = sys._current_frames().get(self.ident or 0), set()
        while frame is not None:
            if frame.f_code.co_name == "_find_and_load" and "importlib" in frame.f_code.co_filename:
                found.add(str(frame.f_locals.get("name")).partition(".")[0])
            frame = frame.f_back
        return found

    def abandon(self, package: str) -> str:
        """Leave it to itself, and end it as soon as it runs Python code; return where it is.

        In the middle of an import of another package it goes on: half of that would be left for
            everybody.
        """
        import ctypes

        self.jobs.put(None)
        frame = sys._current_frames().get(self.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        if self.imports() <= {package}:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self.ident or 0), ctypes.py_object(SystemExit)
            )
        return stack


@dataclass(frozen=True)
class Run:
    """How a plugin's code ran.

    Args:
        result: what it returned.
        side_effects: what it changed for everybody, in words.
        seconds: what it took [s].
        hung: the stack at which it was left, if it did not come back in time.
    """

    result: Any
    side_effects: tuple[str, ...]
    seconds: float
    hung: str | None = None


class Guard:
    """Runs plugins' code within a time limit [s]; made by `guarding`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: _Worker | None = None
        self._quiet: StreamGuard | None = None

    def run(self, action: Callable[[], Any], module: str) -> Run:
        """Run what imports a module, and put back what that changes."""
        if self._quiet is None:
            _LOADING.acquire()
            self._quiet, self._state = StreamGuard(), ProcessState()
        package = module.partition(".")[0]
        hung: str | None = None
        result: Any = None
        local: tuple[str, ...] = ()
        start = time.perf_counter()
        try:
            # the caller holds the lock that a thread would wait for
            if _is_being_imported(package) and package not in _HUNG:
                result, local = self._watching_thread(action)
            else:
                result, local = self._in_thread(lambda: self._watching_thread(action), package)
        except _HangError as error:
            hung = str(error)
            _HUNG.add(package)
        finally:
            seconds = time.perf_counter() - start
            changes, self._state = self._state.put_back()
            changes = (*self._quiet.changes(), *local, *changes)
        return Run(result, changes, seconds, hung)

    def _watching_thread(self, action: Callable[[], Any]) -> tuple[Any, tuple[str, ...]]:
        """Run an action; return its result, and in words what it changed of what every thread has
        of its own.
        """
        assert self._quiet is not None
        self._quiet.thread = threading.get_ident()
        before = ProcessState(local=True)
        _THREAD.loading = True
        try:
            result = action()
        finally:
            _THREAD.loading = False
        return result, before.put_back()[0]

    def _in_thread(self, job: Callable[[], Any], package: str) -> Any:
        if self._worker is None:
            self._worker = _Worker()
            self._worker.start()
        # until it comes back it is nobody's, whatever ends the wait
        worker, self._worker = self._worker, None
        worker.jobs.put(job)
        try:
            result, error = self._wait(worker)
        except BaseException as reason:  # Empty, or Ctrl-C
            stack = worker.abandon(package)
            if isinstance(reason, Empty):
                raise _HangError(stack) from None
            raise
        self._worker = worker
        if error is not None:
            raise error
        return result

    def _wait(self, worker: _Worker) -> tuple[Any, BaseException | None]:
        """Wait for a result; ten times as long while torch is imported, which is slow but must not
        be left half done.
        """
        for _ in range(9):
            try:
                return worker.results.get(timeout=self.seconds)
            except Empty:
                if "torch" not in worker.imports():
                    raise
        return worker.results.get(timeout=self.seconds)

    def close(self) -> None:
        """Give everything back. The thread ends, since a process with several has trouble with
        forks.
        """
        if self._worker is not None:
            self._worker.jobs.put(None)
            self._worker.join()
        if self._quiet is not None:
            self._quiet.close()
            _LOADING.release()


@contextlib.contextmanager
def guarding() -> Iterator[Guard]:
    """Yield a guard for the plugins of one registry.

    Raises:
        PluginError: a plugin asks for one while it is loaded.
    """
    if getattr(_THREAD, "loading", False):
        raise PluginError(
            "a plugin is being loaded, and what is installed is not known yet: make the registry "
            "later"
        )
    guard = Guard(import_timeout())
    try:
        yield guard
    finally:
        guard.close()


def import_timeout() -> float:
    """Return what TVC_IMPORT_TIMEOUT says, else the default [s]."""
    text = os.environ.get("TVC_IMPORT_TIMEOUT", "").strip()
    if not text:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        message = (
            f"TVC_IMPORT_TIMEOUT is {text!r}, not a number of seconds above 0; "
            f"{DEFAULT_TIMEOUT:g} is used"
        )
        warnings.warn(message, RegistryWarning, stacklevel=2)
        return DEFAULT_TIMEOUT
    return min(seconds, threading.TIMEOUT_MAX)


def _is_being_imported(package: str) -> bool:
    """Tell whether the import of a package has begun and not ended."""
    spec = getattr(sys.modules.get(package), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))
