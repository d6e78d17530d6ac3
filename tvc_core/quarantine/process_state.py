"""See what loading a plugin changes for everybody, and put it back.

Looks only at what is loaded already and imports nothing heavy: a look takes some ten microseconds,
so that listing names stays fast. What a plugin does to torch in the very import in which it brings
torch along is held against fresh torch.
"""

from __future__ import annotations

import contextlib
import io
import operator
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import join_names

__all__ = ["StreamGuard", "ProcessState"]

_HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "pandas",
    "sklearn",
    "cv2",
    "PIL",
    "matplotlib",
    "tensorflow",
    "jax",
)
_UNKNOWN = object()


@dataclass(frozen=True, eq=False)
class _Watched:
    """One thing that a module shares with the whole process.

    Args:
        words: what it is, for people.
        module: it is looked at where this module is loaded.
        read: returns its value, given the module.
        write: puts a value back, given the module and the value.
        fresh: returns the value that it has just after the module's import; None where that is not
            known.
        same: compares two values.
        local: every thread has its own.
    """

    words: str
    module: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]
    fresh: Callable[[Any], Any] | None = None
    same: Callable[[Any, Any], bool] = operator.eq
    local: bool = False

    def now(self) -> Any:
        module = sys.modules.get(self.module)
        try:
            return self.read(module) if module is not None else _UNKNOWN
        except Exception:
            # another thread is in the middle of its import, or somebody has put another object
            # there
            return _UNKNOWN

    def at_first(self) -> Any:
        try:
            return self.fresh(sys.modules[self.module]) if self.fresh is not None else _UNKNOWN
        except Exception:
            return _UNKNOWN


def _attribute(words: str, module: str, name: str) -> _Watched:
    """Watch an attribute by its identity."""
    return _Watched(
        words,
        module,
        lambda m: getattr(m, name),
        lambda m, value: setattr(m, name, value),
        same=operator.is_,
    )


def _getter_setter(words: str, module: str, name: str, fresh: Any = _UNKNOWN) -> _Watched:
    """Watch what the function get`name` returns and set`name` sets."""
    return _Watched(
        words,
        module,
        lambda m: getattr(m, f"get{name}")(),
        lambda m, value: getattr(m, f"set{name}")(value),
        fresh=None if fresh is _UNKNOWN else lambda _: fresh,
    )


def _write_environment(_: Any, before: Mapping[str, str]) -> None:
    for name in {*os.environ, *before}:
        if name not in before:
            del os.environ[name]
        elif os.environ.get(name) != before[name]:
            os.environ[name] = before[name]


def _write_finders(module: Any, before: tuple[Any, ...]) -> None:
    module.meta_path[:] = [
        *before,
        *(finder for finder in module.meta_path if finder not in before),
    ]


def _write_filters(module: Any, before: tuple[list[Any], tuple[Any, ...]]) -> None:
    module.filters = before[0]
    module.filters[:] = before[1]
    # leaving it tells the warnings module that its filters have changed
    with warnings.catch_warnings():
        pass


def _write_logging(module: Any, before: tuple[int, tuple[Any, ...], int]) -> None:
    module.root.setLevel(before[0])
    module.root.handlers[:] = before[1]
    module.disable(before[2])


def _same_numpy_state(one: Any, other: Any) -> bool:
    return bool(one[0] == other[0] and one[2:] == other[2:] and (one[1] == other[1]).all())


def _fresh_numpy_state(module: Any) -> Any:
    """Return numpy's state, or one from the system's entropy, as numpy itself starts, if somebody
    has seeded it.
    """
    seeded = module.mtrand._rand._bit_generator.seed_seq is None
    return (module.RandomState() if seeded else module).get_state()


def _fresh_torch_state(module: Any) -> Any:
    """Return torch's state, or one from the system's entropy, as torch itself starts, if somebody
    has seeded it.

    torch draws its first seed from 64 bits of entropy. Seeds that people write are smaller by far.
    """
    if module.initial_seed() >= 2**48:
        return module.default_generator.get_state()
    generator = module.Generator()
    generator.seed()
    return generator.get_state()


def _write_torch_state(module: Any, before: Any) -> None:
    module.default_generator.set_state(before)
    # manual_seed has queued its seed for the GPUs; the last one in the queue counts
    if not module.cuda.is_initialized():
        module.cuda.manual_seed_all(module.initial_seed())


def _write_kernels(module: Any, before: tuple[bool, ...]) -> None:
    module.backends.mkldnn.set_flags(_enabled=before[0])
    for name, enabled in zip(_ATTENTION, before[1:], strict=True):
        getattr(module.backends.cuda, f"enable_{name}_sdp")(enabled)


_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
"""Kernels of torch's attention, as torch.backends.cuda names them."""

_WATCHED = (
    _Watched("working directory", "os", lambda m: m.getcwd(), lambda m, value: m.chdir(value)),
    _attribute("os.environ", "os", "environ"),
    _Watched("environment variables", "os", lambda m: dict(m.environ), _write_environment),
    _Watched(
        "sys.path",
        "sys",
        lambda m: list(m.path),
        lambda m, value: operator.setitem(m.path, slice(None), value),
    ),
    _Watched(
        "sys.meta_path",
        "sys",
        lambda m: tuple(m.meta_path),
        _write_finders,
        # whoever comes last takes nothing from others
        same=lambda before, after: after[: len(before)] == before,
    ),
    _attribute("sys.stderr", "sys", "stderr"),
    _attribute("sys.excepthook", "sys", "excepthook"),
    _getter_setter("recursion limit", "sys", "recursionlimit"),
    _Watched(
        "garbage collection",
        "gc",
        lambda m: m.isenabled(),
        lambda m, value: m.enable() if value else m.disable(),
        fresh=lambda _: True,
    ),
    _Watched(
        "alarm",  # which would end the process
        "signal",
        lambda m: m.getitimer(m.ITIMER_REAL)[0],
        lambda m, value: m.setitimer(m.ITIMER_REAL, value),
        fresh=lambda _: 0.0,
        same=lambda before, after: before > 0 or after == 0,  # the user's own may go off meanwhile
    ),
    _Watched(
        "warnings filters", "warnings", lambda m: (m.filters, tuple(m.filters)), _write_filters
    ),
    _attribute("warnings display", "warnings", "showwarning"),
    _Watched(
        "logging of the root",
        "logging",
        lambda m: (m.root.level, tuple(m.root.handlers), m.root.manager.disable),
        _write_logging,
        fresh=lambda m: (m.WARNING, (), 0),
    ),
    _Watched(
        "start method of processes",
        "multiprocessing",
        lambda m: m.get_start_method(allow_none=True),
        lambda m, value: m.set_start_method(value, force=True),
        fresh=lambda _: None,
    ),
    _getter_setter("default timeout of sockets", "socket", "defaulttimeout", fresh=None),
    _Watched(
        "locale",
        "_locale",
        lambda m: m.setlocale(m.LC_ALL, None),
        lambda m, value: m.setlocale(m.LC_ALL, value),
    ),
    _Watched(
        "random seed of Python",
        "random",
        lambda _: random.getstate(),
        lambda _, value: random.setstate(value),
    ),
    _Watched(
        "random seed of numpy",
        "numpy.random",
        lambda m: m.get_state(),
        lambda m, value: m.set_state(value),
        fresh=_fresh_numpy_state,
        same=_same_numpy_state,
    ),
    _Watched(
        "random seed of torch",
        "torch",
        lambda m: m.default_generator.get_state(),
        _write_torch_state,
        fresh=_fresh_torch_state,
        same=lambda one, other: bool((one == other).all()),
    ),
    _Watched(
        "default dtype of torch",
        "torch",
        lambda m: m.get_default_dtype(),
        lambda m, value: m.set_default_dtype(value),
        fresh=lambda m: m.float32,
    ),
    _Watched(
        "deterministic algorithms of torch",
        "torch",
        lambda m: (
            m.are_deterministic_algorithms_enabled(),
            m.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda m, value: m.use_deterministic_algorithms(value[0], warn_only=value[1]),
        fresh=lambda m: (False, False),
    ),
    _Watched(
        "cuDNN flags of torch",
        "torch",
        lambda m: tuple(
            getattr(m.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")
        ),
        lambda m, value: m.backends.cudnn.set_flags(
            _enabled=value[0], _benchmark=value[1], _deterministic=value[2]
        ),
        fresh=lambda m: (True, False, False),
    ),
    _Watched(
        "CPU kernels and attention kernels of torch",
        "torch",
        lambda m: (
            m.backends.mkldnn.enabled,
            *(getattr(m.backends.cuda, f"{name}_sdp_enabled")() for name in _ATTENTION),
        ),
        _write_kernels,
        fresh=lambda m: (True,) * (1 + len(_ATTENTION)),
    ),
    _getter_setter(
        "precision of matrix products of torch",
        "torch",
        "_float32_matmul_precision",
        fresh="highest",
    ),
    _Watched(
        "number of threads of torch",
        "torch",
        lambda m: m.get_num_threads(),
        lambda m, value: m.set_num_threads(value),
        local=True,
    ),
    _Watched(
        "gradient mode of torch",
        "torch",
        lambda m: m.is_grad_enabled(),
        lambda m, value: m.set_grad_enabled(value),
        fresh=lambda _: True,
        local=True,
    ),
    _Watched(
        "default device of torch",
        "torch",
        lambda m: m.get_default_device(),
        lambda m, value: m.set_default_device(None if value.type == "cpu" else value),
        fresh=lambda m: m.device("cpu"),
        local=True,
    ),
)


class ProcessState:
    """What the process shares, at the moment of the look.

    Args:
        local: look at what every thread has of its own, and at nothing else.
    """

    def __init__(self, *, local: bool = False) -> None:
        self.local = local
        self.values = {entry: entry.now() for entry in _WATCHED if entry.local is local}
        self.heavy = set() if local else {name for name in _HEAVY if name in sys.modules}

    def put_back(self) -> tuple[tuple[str, ...], ProcessState]:
        """Make everything as it was here; return in words what was not, and the state that there is
        then.
        """
        now = ProcessState(local=self.local)
        changes: list[str] = []
        for entry, after in now.values.items():
            before = self.values[entry]
            if before is _UNKNOWN and after is not _UNKNOWN:
                before = entry.at_first()
            if before is _UNKNOWN or after is _UNKNOWN or entry.same(before, after):
                continue
            # a folder that is gone cannot be the working directory again
            with contextlib.suppress(Exception):
                entry.write(sys.modules[entry.module], before)
            keyed = type(after) is dict and entry.same is operator.eq
            names = (
                sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
                if keyed
                else []
            )
            changes.append(f"{entry.words} ({join_names(names, most=4)})" if names else entry.words)
        heavy = sorted(now.heavy - self.heavy)
        changes += [f"import of {join_names(heavy)}"] if heavy else []
        return tuple(changes), ProcessState(local=self.local) if changes else now


class StreamGuard:
    """Keeps from plugins what they must not touch while they are loaded: the standard streams and
    signal handlers.

    Handlers can be set in the main thread only, and plugins are loaded in another. So that a plugin
    that sets one can be loaded all the same, `signal.signal` does nothing meanwhile.
    """

    def __init__(self) -> None:
        import signal

        self.thread = 0
        """The thread that runs a plugin's code. What others print goes where it would go
        otherwise.
        """
        self._signal, self._set = signal, signal.signal
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._on = True
        self._printed = _Bytes(self)
        self._restart()
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BytesIO())  # type: ignore[misc]
        for name in ("stderr", "__stderr__"):
            if self._streams[name] is not None:
                setattr(sys, name, _BorrowedStream(self._streams[name]))
        signal.signal = self._note_signal  # type: ignore[assignment]

    def close(self) -> None:
        """Give everything back."""
        self._on = False
        self._printed.read_already = True
        for name, stream in self._streams.items():
            setattr(sys, name, stream)
        self._signal.signal = self._set

    def changes(self) -> tuple[str, ...]:
        """Return in words what a plugin tried since the last call; what it printed goes to
        stderr.
        """
        replaced = sys.stdout is not self.stdout
        text = ""
        try:
            self.stdout.flush()
            text = self.stdout.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
        except (ValueError, AttributeError):  # closed or detached
            replaced = True
        found = ["sys.stdout"] if replaced else []
        if text:
            found.append("output")
            with contextlib.suppress(Exception):
                print(text, end="" if text.endswith("\n") else "\n", file=sys.stderr)
        if self.signals:
            found.append("signal handlers")
        if found:
            self._restart()
        return tuple(found)

    def write_elsewhere(self, text: str) -> None:
        """Write what another thread prints."""
        if self._streams["stdout"] is not None:
            self._streams["stdout"].write(text)

    def _restart(self) -> None:
        self.signals = 0
        self._printed.read_already = True
        self._printed = _Bytes(self)
        self.stdout = io.TextIOWrapper(
            self._printed, encoding="utf-8", errors="backslashreplace", write_through=True
        )
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]

    def _note_signal(self, number: Any, handler: Any) -> Any:
        if not self._on:  # a plugin may have kept this function
            return self._set(number, handler)
        self.signals += 1
        return self._signal.getsignal(number)


_STREAMS = ("stdout", "__stdout__", "stdin", "__stdin__", "stderr", "__stderr__")


class _Bytes(io.BytesIO):
    """What a plugin prints; once it was read, what a plugin that kept its stream prints goes to
    stderr at once.
    """

    read_already = False

    def __init__(self, quiet: StreamGuard) -> None:
        super().__init__()
        self._quiet = quiet

    def write(self, data: Any) -> int:
        text = bytes(data).decode("utf-8", "replace")
        if self.read_already:
            sys.stderr.write(text)
        elif threading.get_ident() != self._quiet.thread:
            self._quiet.write_elsewhere(text)
        else:
            return super().write(data)
        return len(data)


class _BorrowedStream:
    """A stream that its borrower cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return _BorrowedStream(found) if name in ("buffer", "raw") else found

    def close(self) -> None:
        """Leave it open."""

    def detach(self) -> Any:
        raise io.UnsupportedOperation("this stream is another's")
