"""Keep stdout for results, whatever plugins and libraries write, from any thread, until the process
ends.

`stdout_for_results` does it for the process: file descriptor 1 becomes stderr, and only tvc has the
real one. `while_running` does it for `sys.stdout` while a command runs, which is all that is needed
where a test calls a command.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

__all__ = ["given", "results", "stdout_for_results", "while_running"]

_kept: list[TextIO] = []  # where results go, while sys.stdout is stderr
# what sys.stdout was before file descriptor 1 became stderr: it writes to stderr
_elsewhere: list[TextIO] = []


def results() -> TextIO:
    """Return the stream that results are printed to."""
    return _kept[-1] if _kept else sys.stdout


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Keep the process's stdout apart: what writes to file descriptor 1 from now on, until the end,
    writes to stderr.
    """
    for number in (1, 2):
        try:
            os.fstat(number)
        except OSError:  # started with a closed stream, as by `tvc list 2>&-`
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    descriptor = os.dup(1)
    os.dup2(2, 1)
    before = sys.stdout
    encoding, errors = getattr(before, "encoding", None), getattr(before, "errors", None)
    if errors in (
        "strict",
        "surrogateescape",
        None,
    ):  # a name that the terminal cannot show is no reason to fail
        errors = "backslashreplace"
    apart = os.fdopen(descriptor, "w", encoding=encoding, errors=errors)
    sys.stdout = apart
    _elsewhere.append(before)
    try:
        yield
    finally:
        sys.stdout = _elsewhere.pop()  # and not `apart`: plugins may print while the process ends
        with contextlib.suppress(OSError):  # a reader such as `head` has seen enough
            apart.close()


@contextlib.contextmanager
def while_running() -> Iterator[None]:
    """Send what is printed inside to stderr, except what is printed to `results()`."""
    _kept.append(results())
    sys.stdout = _elsewhere[-1] if _elsewhere else sys.stderr
    try:
        yield
    finally:
        kept = _kept.pop()
        if not _elsewhere and not _kept:  # else a plugin's thread may print until the process ends
            sys.stdout = kept


@contextlib.contextmanager
def given() -> Iterator[None]:
    """Let `sys.stdout` be the stream of results, for help and for commands that print there."""
    before, sys.stdout = sys.stdout, results()
    try:
        yield
    finally:
        sys.stdout = before
