"""Keep what converters print and log from the user, and what runtimes report from their makers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["onnxruntime", "quiet"]


def onnxruntime() -> Any:
    """Return ONNX Runtime, which since 1.29 gives the machine a number and reports each session,
    with the name of its file, to its makers. It reads a variable when it is first imported; what a
    user says there counts. Where it was imported before, it is asked to stop.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()
    return onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed, logged and warned of inside, which is for the makers of converters.
    Errors are raised as ever.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
