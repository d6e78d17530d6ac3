"""What a process shares, read whole, and interrupts at every line of tvc."""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

__all__ = ["changed", "interrupt", "lines_of", "process_settings"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def process_settings() -> dict[str, Any]:
    """Return what everybody in the process shares, or this thread's own."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return {
        # torch
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "threads between operations": torch.get_num_interop_threads(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cuDNN": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "kernels of attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        "oneDNN": torch.backends.mkldnn.enabled,
        "matrix products": torch.get_float32_matmul_precision(),
        "seed of torch": torch.initial_seed(),
        "folder of the hub": torch.hub.get_dir(),
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
        "modes, without which torch compiles": (
            torch.utils._python_dispatch.is_in_torch_dispatch_mode(),
            torch.utils._python_dispatch.is_in_any_mode_without_ignore_compile_internals(),
        ),
        # others
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": np.random.get_state()[1].tobytes(),
        "numpy's errors": np.geterr(),
        "warnings": (tuple(warnings.filters), warnings.showwarning),
        "logging": (logging.root.level, tuple(logging.root.handlers), logging.root.manager.disable),
        "logging of timm": logging.getLogger("timm").level,
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__),
        "signals": (signal.signal, *(signal.getsignal(number) for number in SIGNALS)),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "working directory": Path.cwd(),
        "environment": dict(os.environ),
        "sys.path": tuple(sys.path),
        "finders": tuple(sys.meta_path),
        "recursion limit": sys.getrecursionlimit(),
        "exception hook": (sys.excepthook, threading.excepthook),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "locale": locale.setlocale(locale.LC_ALL),
        "timeout of sockets": socket.getdefaulttimeout(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "switch interval": sys.getswitchinterval(),
        "file mode mask": _umask(),
    }


def changed(before: dict[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the settings that are not as they were."""
    now = process_settings()
    return [name for name in before if name not in but and now[name] != before[name]]


def _ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return "tvc_core" in name or "/tvc_" in name


def _watch(call: Callable[[], Any], on_line: Callable[[FrameType], object]) -> None:
    """Run a call, and something before each line of tvc's code that it runs in this thread."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not _ours(frame):
            return None
        if event == "line":
            on_line(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def lines_of(call: Callable[[], Any]) -> list[tuple[str, int]]:
    """Return the lines of tvc's code that a call runs in this thread, each once, in order."""
    lines: dict[tuple[str, int], None] = {}
    _watch(call, lambda frame: lines.setdefault((frame.f_code.co_filename, frame.f_lineno)))
    return list(lines)


def interrupt(call: Callable[[], Any], where: tuple[str, int] | int) -> bool:
    """Run a call and raise KeyboardInterrupt once; tell whether it came there.

    Args:
        call: what is run.
        where: before which line, as `lines_of` gives it, or after how many lines that it has run.
    """
    reached, count = False, 0

    def stop(frame: FrameType) -> None:
        nonlocal reached, count
        here = count if isinstance(where, int) else (frame.f_code.co_filename, frame.f_lineno)
        count += 1
        if here == where and not reached:
            reached = True
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        _watch(call, stop)
    return reached
