"""Run a plugin's code so that it can hang without holding up others, and put back what can change
the bits of a build.

The code runs in a thread, and the caller waits for it. Nothing else ends a wait that the plugin has
begun: a signal belongs to the user, and a process could not hand over what was imported
(docs/explanation/architecture.md, "The hook layer"). The caller holds no lock, so an interrupt at
any of its lines leaves none behind.
"""

from __future__ import annotations

import _thread
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from ..errors import PluginError, RegistryWarning, describe_error
from .process_state import ProcessState

__all__ = ["Fault", "Run", "check_not_loading", "run_caught", "run_guarded"]

DEFAULT_TIMEOUT = 10.0
"""What a plugin's import and hooks may take together [s]."""

_GRACE = 0.5
"""What the caller still waits after an interrupt, so that most plugins come to an end [s]."""

_LOADING = threading.RLock()
"""Held by the thread that runs a plugin's code, and by one that forks. A new one takes its place if
that thread does not come back.
"""

_HUNG: dict[str, Run] = {}
"""How the modules ran whose import hung. Their import locks are held for ever."""

_THREAD = threading.local()
"""`loading` is true in a thread while it runs a plugin's code; `lock` is what it forks with."""


class Fault(Exception):  # noqa: N818  what is wrong with a plugin, not an error of ours
    """A plugin breaks a rule, raises or hangs.

    Args:
        message: what is wrong.
        status: what the plugin becomes.
        traceback: where it raised, or where it hangs.
    """

    def __init__(self, message: str, status: str = "failed", traceback: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.traceback = traceback


@dataclass(frozen=True)
class Run:
    """How a plugin's code ran.

    Args:
        result: what it returned.
        fault: what is wrong with it; None if it returned.
        side_effects: what it changed and was put back, in words.
        seconds: what it took [s].
    """

    result: Any = None
    fault: Fault | None = None
    side_effects: tuple[str, ...] = ()
    seconds: float = 0.0


def run_caught(action: Callable[[], Any]) -> Run:
    """Run a plugin's code in this thread. Whatever it raises is its fault; Ctrl-C passes."""
    try:
        return Run(action())
    except Fault as fault:
        return Run(fault=fault)
    except BaseException as raised:  # a plugin may raise SystemExit or worse
        # Python delivers Ctrl-C to the main thread only. A KeyboardInterrupt in any other thread
        # was raised by the plugin itself, and is its fault like anything else that it raises.
        main = threading.current_thread() is threading.main_thread()
        if isinstance(raised, KeyboardInterrupt) and main:
            raise
        return Run(fault=Fault(describe_error(raised), traceback=traceback.format_exc()))


class _Job:
    """An action that runs in a thread of its own, and what has become of it."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._action = action
        self._begun: SimpleQueue[None] = SimpleQueue()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._start = time.perf_counter()
        self._thread = 0
        self._lock: Any = None
        self._state: ProcessState | None = None
        self._abandoned = self._closed = False
        self.run: Run | None = None

    def __call__(self) -> None:
        """Run the action, after those of other threads."""
        # The time that a plugin may take begins when its turn has come, which `_begun` says to the
        # thread that waits. Given up before its turn, it does nothing at all.
        lock = _take_turn()
        try:
            if self._abandoned:
                return
            self._lock, self._thread, self._start = lock, threading.get_ident(), time.perf_counter()
            self._state = ProcessState()
            self._begun.put(None)
            _THREAD.loading = True
            run = run_caught(self._action)
            seconds = time.perf_counter() - self._start
            if not self._abandoned:  # else later changes are other code's, as far as one can tell
                self.run = replace(run, side_effects=self._state.put_back(), seconds=seconds)
        finally:
            lock.release()
            self._done.put(None)

    def wait(self, seconds: float) -> Run:
        """Wait until the action has ended or hangs.

        Importing torch is slow on some machines, and half an import would make every build fail:
        then the wait is up to ten times as long.
        """
        # A wait that runs out may still be a good one: the plugin imports torch, or waits for
        # another thread's import of it. So the wait goes on, up to ten times, as long as torch is
        # on its way. A thread cannot be killed. If it does not come back it is left behind: its
        # stack says where, and what it has changed until now is put back from here, without what
        # belongs to that thread alone.
        self._begun.get()
        for _ in range(10):
            had_torch = "torch" in sys.modules
            try:
                self._done.get(timeout=seconds)
                break
            except Empty:
                new_torch = "torch" in sys.modules and not had_torch
                if not (new_torch or is_being_imported("torch")):
                    break
        if self.run is not None:
            return self.run
        frame = sys._current_frames().get(self._thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        self._abandoned = True
        effects = self._state.put_back(thread=False) if self._state is not None else ()
        advice = "TVC_DISABLE leaves it out, TVC_IMPORT_TIMEOUT=seconds waits longer"
        message = f"did not finish importing within {seconds:g} s (module and hooks); {advice}"
        fault = Fault(message, traceback=stack)
        return Run(None, fault, effects, time.perf_counter() - self._start)

    def close(self, *, hung: bool) -> None:
        """Leave the action to itself if it has not ended: put back what it has changed so far, and
        let others go on. May be repeated.
        """
        # Reached twice, by the two nested `finally` of `run_guarded`, and after an interrupt
        # possibly in the middle of itself: so each step may be repeated. The lock of a thread that
        # hangs can be released by that thread only. A new lock takes its place, and `_take_turn`
        # asks whether the one it got is still the one in force.
        global _LOADING
        if self._closed or self.run is not None:
            return
        if not hung and self._state is not None:
            with suppress(Empty):
                self._done.get(timeout=_GRACE)
        self._abandoned = True
        if self.run is None and self._state is not None:
            self._state.put_back(thread=False)
            if self._lock is _LOADING:
                _LOADING = threading.RLock()
        self._closed = True


def run_guarded(action: Callable[[], Any], module: str) -> Run:
    """Run what imports a module or calls its hooks, and put back what that changes.

    Args:
        action: what is to be run.
        module: the plugin's module. One that has hung once is not run again.
    """
    if module in _HUNG:
        return _HUNG[module]
    package = module.partition(".")[0]
    # the caller holds the import lock that a thread would wait for
    if is_being_imported(package) and not any(_in(package, hung) for hung in _HUNG):
        return _run_here(action)
    job, hung = _Job(action), False
    # _thread and not threading, whose start() takes locks in Python code of this thread
    try:
        try:
            _thread.start_new_thread(job, ())
            run = job.wait(_import_timeout())
            hung = job.run is None
            if hung:
                _HUNG[module] = run
            return run
        finally:
            job.close(hung=hung)
    finally:  # an interrupt may fall on the line of the first one
        job.close(hung=hung)


def _run_here(action: Callable[[], Any]) -> Run:
    """Run an action in the calling thread, which nothing can end."""
    state, start = ProcessState(), time.perf_counter()
    try:
        try:
            _THREAD.loading = True
            run = run_caught(action)
            _THREAD.loading = False
            seconds = time.perf_counter() - start
            return replace(run, side_effects=state.put_back(), seconds=seconds)
        finally:
            _THREAD.loading = False
            state.put_back()
    finally:
        _THREAD.loading = False
        state.put_back()


def check_not_loading() -> None:
    """Refuse to look for plugins in the middle of loading one.

    Raises:
        PluginError: this thread is running a plugin's code.
    """
    if getattr(_THREAD, "loading", False):
        raise PluginError(
            "a plugin is being loaded, and what is installed is not known yet: make the registry "
            "later"
        )


def _import_timeout() -> float:
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


def is_being_imported(package: str) -> bool:
    """Return whether the import of a package has begun and not ended."""
    spec = getattr(sys.modules.get(package), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _in(package: str, module: str) -> bool:
    return module.partition(".")[0] == package


def _take_turn(most: float = math.inf) -> Any:
    """Return the lock, held: no other thread runs a plugin's code.

    Args:
        most: how long to wait; then the lock is returned all the same, unheld [s].
    """
    # In short waits, since the lock may be replaced by another one meantime (its holder was given
    # up), and whoever waits for the old one would wait for ever. The same short waits let an
    # interrupt through.
    end = time.monotonic() + most
    while True:
        lock = _LOADING
        if lock.acquire(timeout=0.2):
            if lock is _LOADING:
                return lock
            lock.release()  # its holder had been given up
        elif time.monotonic() > end:
            return None


def _before_fork() -> None:
    # A child has a copy of every lock, and not the threads that would release them: also Python's
    # locks of the modules that are being imported. So a fork waits until no plugin is being loaded.
    _THREAD.lock = _take_turn(most=30.0)


def _after_fork() -> None:
    lock, _THREAD.lock = getattr(_THREAD, "lock", None), None
    if lock is not None:
        lock.release()


def _after_fork_in_child() -> None:
    global _LOADING
    _after_fork()
    _LOADING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
