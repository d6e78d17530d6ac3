"""See what loading a plugin changes in a process of its own. Imports no torch.

What can change the bits of a build, tvc itself puts back wherever it loads plugins. The rest, such
as streams and signal handlers, belongs to the process and its user: tvc does not touch it, and it
can be seen cleanly only where nothing else runs.
"""

from __future__ import annotations

import operator
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ..quarantine.process_state import ProcessState

__all__ = ["HEAVY", "ProcessWatch"]

HEAVY = (
    *("torch", "torchvision", "timm", "tensorflow", "jax", "lightning", "transformers"),
    *("numpy", "scipy", "pandas", "sklearn", "PIL", "cv2", "matplotlib", "safetensors"),
)
"""Packages that take long to import: a registration module leaves them to its factories."""

_UNKNOWN = object()


class _Watched(NamedTuple):
    """One thing of the process.

    Args:
        words: what it is, for people.
        module: it is looked at where this module is loaded.
        read: returns its value, given the module.
        fresh: the value just after the module's import, where it may come with the plugin.
        heavy_change_it: large packages change it when they are imported.
    """

    words: str
    module: str
    read: Callable[[Any], Any]
    fresh: Any = _UNKNOWN
    heavy_change_it: bool = False

    def now(self) -> Any:
        with suppress(Exception):
            if self.module in sys.modules:
                return self.read(sys.modules[self.module])
        return self.fresh


def _handlers(module: Any) -> dict[int, Any]:
    return {number: module.getsignal(number) for number in module.valid_signals()}


def _umask(module: Any) -> int:
    mask: int = module.umask(0)
    module.umask(mask)
    return mask


def _logging(module: Any) -> tuple[Any, ...]:
    return (module.root.level, tuple(module.root.handlers), module.root.manager.disable)


_WATCHED = (
    *(
        _Watched(f"sys.{name}", "sys", operator.attrgetter(name))
        for name in ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
    ),
    *(
        _Watched(f"sys.{name} (closed)", "sys", operator.attrgetter(f"{name}.closed"))
        for name in ("stdin", "stdout", "stderr")
    ),
    _Watched("signal handlers", "signal", _handlers),
    _Watched("alarm", "signal", lambda m: m.getitimer(m.ITIMER_REAL)[0] > 0, False),
    _Watched("sys.excepthook", "sys", operator.attrgetter("excepthook")),
    _Watched("sys.path", "sys", lambda m: list(m.path)),
    _Watched("sys.meta_path", "sys", lambda m: list(m.meta_path), heavy_change_it=True),
    _Watched("recursion limit", "sys", lambda m: m.getrecursionlimit()),
    _Watched("os.environ", "os", lambda m: id(m.environ)),
    _Watched("umask", "os", _umask),
    _Watched("garbage collection", "gc", lambda m: m.isenabled(), True),
    _Watched("locale", "_locale", lambda m: m.setlocale(m.LC_ALL, None)),
    _Watched("warnings filters", "warnings", lambda m: list(m.filters), heavy_change_it=True),
    _Watched("warnings display", "warnings", operator.attrgetter("showwarning")),
    _Watched("logging of the root", "logging", _logging, (30, (), 0), heavy_change_it=True),
    _Watched("default timeout of sockets", "socket", lambda m: m.getdefaulttimeout(), None),
    _Watched(
        "start method of processes",
        "multiprocessing",
        lambda m: m.get_start_method(allow_none=True),
        None,
    ),
    _Watched("anomaly detection of torch", "torch", lambda m: m.is_anomaly_enabled(), False),
    _Watched("folder of torch.hub", "torch", lambda m: m.hub._hub_dir, None),
)


class ProcessWatch:
    """What a process is like before plugins are loaded; for a process that does nothing else.

    From here on until `changes`, what is written to the descriptor 1 goes to a file.
    """

    def __init__(self) -> None:
        self._state = ProcessState()
        self._modules = set(sys.modules)
        self._before = [entry.now() for entry in _WATCHED]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._flush()
        self._stdout = os.dup(1)
        os.dup2(self._printed.fileno(), 1)

    def heavy(self) -> list[str]:
        """Return the large packages that have come along."""
        return [name for name in HEAVY if name in sys.modules and name not in self._modules]

    def changes(self) -> list[str]:
        """Return in words what has changed, "output" for what was printed included. What can
        change the bits of a build is put back.
        """
        heavy = bool(self.heavy())
        found = [
            entry.words
            for entry, before in zip(_WATCHED, self._before, strict=True)
            if before is not _UNKNOWN and not (heavy and entry.heavy_change_it)
            if entry.now() != before
        ]
        self._flush()
        os.dup2(self._stdout, 1)
        if os.fstat(self._printed.fileno()).st_size:
            found.append("output")
        return [*found, *self._state.put_back()]

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.__stdout__):
            with suppress(Exception):  # a plugin may have closed it
                if stream is not None:
                    stream.flush()
