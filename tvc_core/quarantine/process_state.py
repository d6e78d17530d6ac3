"""What can change the bits of a build: look at it, and put it back.

A look imports nothing: it sees what is loaded already, and takes some ten microseconds, so that
listing names stays fast. Streams, signals and the other things that plugins change belong to the
process; `tvc doctor`, which loads each plugin in a process of its own, reports those.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from ..errors import join_names

__all__ = ["ProcessState", "preserved", "run_preserved"]

T = TypeVar("T")

_ABSENT, _UNKNOWN = object(), object()
"""Instead of a value: the module is not loaded; the value cannot be read."""


class _Setting(NamedTuple):
    """One thing that a module shares with the whole process.

    Args:
        words: what it is, for people.
        module: it is looked at where this module is loaded.
        scope: "process"; "thread", if each thread has its own; "random", for the generators, which
            other threads may use at the same time.
        read: returns its value, given the module.
        write: puts a value back, given the module and the value.
        fresh: returns the value that it has just after the module's import.
    """

    words: str
    module: str
    scope: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]
    fresh: Callable[[Any], Any] = lambda _: _UNKNOWN

    def now(self) -> Any:
        module = sys.modules.get(self.module)
        try:
            return _ABSENT if module is None else self.read(module)
        except Exception:  # another thread is in the middle of its import
            return _UNKNOWN

    def put_back(self, before: Any) -> str | None:
        """Write a value where another stands now; return in words which setting it is, or None."""
        # If the module was not loaded at the look, the plugin has brought it along, and there is no
        # earlier value to go back to. Then the value counts that a fresh import has: so a plugin
        # that imports torch and seeds it is noticed. What cannot be read, on either side, is left
        # alone.
        now = self.now()
        if before is _ABSENT and now is not _ABSENT:
            with suppress(Exception):
                before = self.fresh(sys.modules[self.module])
        unknown = any(value is _ABSENT or value is _UNKNOWN for value in (before, now))
        if unknown or _same(before, now):
            return None
        with suppress(Exception):  # a folder that is gone cannot be the working directory again
            self.write(sys.modules[self.module], before)
        if not isinstance(before, dict):
            return self.words
        changed = (key for key in {*before, *now} if before.get(key) != now.get(key))
        names = sorted(os.fsdecode(key) for key in changed)
        return f"{self.words} ({join_names(names, most=4)})"


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # arrays, or tuples of arrays and numbers
        if isinstance(one, tuple):
            return all(_same(a, b) for a, b in zip(one, other, strict=True))
        return bool((one == other).all())


_ENVIRONMENT: Any = os.environb if os.supports_bytes_environ else os.environ


def _read_environment(_: Any) -> dict[Any, Any]:
    # the mapping itself decodes each name and value, which takes a hundred times as long
    return dict(getattr(_ENVIRONMENT, "_data", _ENVIRONMENT))


def _write_environment(_: Any, before: Mapping[Any, Any]) -> None:
    for name in {*_ENVIRONMENT, *before}:
        if name not in before:
            del _ENVIRONMENT[name]
        elif _ENVIRONMENT.get(name) != before[name]:
            _ENVIRONMENT[name] = before[name]


def _fresh_numpy_state(module: Any) -> Any:
    """Return numpy's state; if it has been seeded, one from the system's entropy, as it starts."""
    seeded = module.mtrand._rand._bit_generator.seed_seq is None
    return (module.RandomState() if seeded else module).get_state()


def _fresh_torch_state(module: Any) -> Any:
    """Return torch's state; if it has been seeded, one from the system's entropy, as it starts.

    torch draws its first seed from 64 bits of entropy. Seeds that people write are smaller by far.
    """
    generator = module.default_generator
    if module.initial_seed() < 2**48:
        generator = module.Generator()
        generator.seed()
    return generator.get_state()


def _write_torch_state(module: Any, before: Any) -> None:
    module.default_generator.set_state(before)
    # manual_seed has queued its seed for the GPUs; the last one in the queue counts
    if not module.cuda.is_initialized():
        module.cuda.manual_seed_all(module.initial_seed())


def _fresh_number_of_threads(module: Any) -> Any:
    """Return the most threads that torch takes by itself, if there are more now.

    What it takes by itself depends on how it was compiled; so fewer may also be the fresh value.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    most = min(int(os.environ.get("OMP_NUM_THREADS") or cores), cores)
    return most if module.get_num_threads() > most else _UNKNOWN


_CUDNN = ("enabled", "benchmark", "deterministic")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
"""Kernels of torch's attention, as torch.backends.cuda names them."""


def _read_kernels(module: Any) -> tuple[bool, ...]:
    attention = (getattr(module.backends.cuda, f"{name}_sdp_enabled")() for name in _ATTENTION)
    fused = module.backends.mha.get_fastpath_enabled()
    return (module.backends.mkldnn.enabled, fused, *attention)


def _write_kernels(module: Any, before: tuple[bool, ...]) -> None:
    module.backends.mkldnn.set_flags(_enabled=before[0])
    module.backends.mha.set_fastpath_enabled(before[1])
    for name, enabled in zip(_ATTENTION, before[2:], strict=True):
        getattr(module.backends.cuda, f"enable_{name}_sdp")(enabled)


def _read_autocast(module: Any) -> tuple[tuple[str, bool, Any], ...]:
    devices = ("cpu", "cuda")
    return tuple((d, module.is_autocast_enabled(d), module.get_autocast_dtype(d)) for d in devices)


def _write_autocast(module: Any, before: tuple[tuple[str, bool, Any], ...]) -> None:
    for device, enabled, dtype in before:
        module.set_autocast_enabled(device, enabled)
        module.set_autocast_dtype(device, dtype)


# fmt: off
_SETTINGS = (
    _Setting("working directory", "os", "process",
             lambda m: m.getcwd(), lambda m, v: m.chdir(v)),
    _Setting("environment variables", "os", "process",
             _read_environment, _write_environment),
    _Setting("random seed of Python", "random", "random",
             lambda _: random.getstate(), lambda _, v: random.setstate(v)),
    _Setting("random seed of numpy", "numpy.random", "random",
             lambda m: m.get_state(), lambda m, v: m.set_state(v), _fresh_numpy_state),
    _Setting("random seed of torch", "torch", "random",
             lambda m: m.default_generator.get_state(), _write_torch_state, _fresh_torch_state),
    _Setting("default dtype of torch", "torch", "process",
             lambda m: m.get_default_dtype(), lambda m, v: m.set_default_dtype(v),
             lambda m: m.float32),
    _Setting("deterministic algorithms of torch", "torch", "process",
             lambda m: (m.are_deterministic_algorithms_enabled(),
                        m.is_deterministic_algorithms_warn_only_enabled()),
             lambda m, v: m.use_deterministic_algorithms(v[0], warn_only=v[1]),
             lambda _: (False, False)),
    _Setting("cuDNN flags of torch", "torch", "process",
             lambda m: tuple((f"_{name}", getattr(m.backends.cudnn, name)) for name in _CUDNN),
             lambda m, v: m.backends.cudnn.set_flags(**dict(v)),
             lambda _: (("_enabled", True), ("_benchmark", False), ("_deterministic", False))),
    _Setting("CPU kernels and attention kernels of torch", "torch", "process",
             _read_kernels, _write_kernels, lambda _: (True,) * 6),
    _Setting("precision of matrix products of torch", "torch", "process",
             lambda m: m.get_float32_matmul_precision(),
             lambda m, v: m.set_float32_matmul_precision(v), lambda _: "highest"),
    # read by a division of Python's, which the processor does in the thread's mode
    _Setting("flushing of denormal numbers", "torch", "thread",
             lambda _: sys.float_info.min / 2 == 0.0, lambda m, v: m.set_flush_denormal(v),
             lambda _: False),
    _Setting("number of threads of torch", "torch", "thread",
             lambda m: m.get_num_threads(), lambda m, v: m.set_num_threads(v),
             _fresh_number_of_threads),
    _Setting("gradient mode of torch", "torch", "thread",
             lambda m: m.is_grad_enabled(), lambda m, v: m.set_grad_enabled(v), lambda _: True),
    _Setting("default device of torch", "torch", "thread",
             lambda m: m.get_default_device(),
             lambda m, v: m.set_default_device(None if v.type == "cpu" else v),
             lambda m: m.device("cpu")),
    _Setting("autocast of torch", "torch", "thread", _read_autocast, _write_autocast,
             lambda m: (("cpu", False, m.bfloat16), ("cuda", False, m.float16))),
)
# fmt: on

_ACTIVE: weakref.WeakValueDictionary[int, ProcessState] = weakref.WeakValueDictionary()
"""The looks that are to be put back. One that an interrupt loses vanishes with its frame."""


class ProcessState:
    """What can change the bits of a build, at the moment of the look.

    There is no telling which thread has changed what. So looks that overlap share their values: a
    thread never takes what another has changed for a moment for the state to go back to. And it
    leaves the random generators alone, since rewinding them would give two threads the same
    numbers.
    """

    def __init__(self) -> None:
        # Two threads that load plugins at once: the first sees dtype float32, its plugin sets
        # float64, and then the second one looks. It must not take float64 for the state to go back
        # to. So what is the process's is taken over from a look that is still open in another
        # thread, and read only where there is none.
        self._thread = threading.get_ident()
        self._overlaps: bool
        self._before: dict[_Setting, Any]
        active = [state for state in (ref() for ref in _ACTIVE.valuerefs()) if state is not None]
        others = [state for state in active if state._thread != self._thread]
        for state in others:
            state._overlaps = True
        self._overlaps = bool(others)
        shared = others[0]._before if others else {}
        self._before = {
            setting: shared[setting]
            if setting.scope == "process" and shared.get(setting, _ABSENT) is not _ABSENT
            else setting.now()
            for setting in _SETTINGS
        }
        self._changes: dict[str, None] = {}
        self._done = False
        _ACTIVE[id(self)] = self

    def put_back(self, *, thread: bool = True, generators: bool = True) -> tuple[str, ...]:
        """Restore everything to its state at the look; return in words what differed.

        Repeated after an interrupt it goes on, and repeated after its end it does nothing more.

        Args:
            thread: also what the calling thread has of its own, which is then the looking one.
            generators: also the random generators, unless another thread looked in between.
        """
        leave = {"thread": not thread, "random": self._overlaps or not generators}
        for setting, before in () if self._done else self._before.items():
            if leave.get(setting.scope):
                continue
            if (words := setting.put_back(before)) is not None:
                self._changes[words] = None
        _ACTIVE.pop(id(self), None)
        self._done = True
        return tuple(self._changes)


class preserved:  # noqa: N801  a context manager, written like a function
    """Put back what the code inside changes: after an error everything, else not the generators."""

    def __enter__(self) -> None:
        self._state = ProcessState()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._state.put_back(generators=error is not None)


def run_preserved(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function as inside of `preserved`, also where an interrupt falls on the way out.

    An interrupt on the line of a `with` or a `finally` skips what it would do. So there are two,
    one around the other, and putting back twice does no harm.
    """
    state, failed = ProcessState(), True
    try:
        try:
            result = function(*args, **kwargs)
            failed = False
            return result
        finally:
            state.put_back(generators=failed)
    finally:
        state.put_back(generators=failed)


if hasattr(os, "register_at_fork"):  # the other threads, and their looks, stay behind
    os.register_at_fork(after_in_child=_ACTIVE.clear)
