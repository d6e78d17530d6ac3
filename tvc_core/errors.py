"""Every error that tvc raises on purpose, and the words that errors share.

Each error says what was given, what there is, and what to do. All are subclasses of `TvcError` and
of the built-in exception that they resemble, so both `except TvcError` and `except ValueError`
work.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "AmbiguousNameError", "BackboneError", "FreezeError", "HeadError", "ParameterError",
    "PatchError", "PluginError", "RecipeError", "RegistryWarning", "StageError", "TargetError",
    "TvcError", "UnknownNameError", "WeightsError",
]  # fmt: skip


MAX_MESSAGE = 2000
"""Of an error [bytes of UTF-8]."""


class TvcError(Exception):
    """Base of every error that tvc raises on purpose. Its message is cut in the middle where it is
    long, and characters that do not print are escaped, whatever a file or a plugin put into it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_fitting(str(message)))

    below: tuple[str, ...] = ()
    """The keys that lead from what was being handled to what is wrong with it."""

    path: tuple[Any, ...] | None = None
    """Where in a recipe it is, as keys; None where that is not known."""


def _fitting(text: str) -> str:
    """Return a message with its beginning and its end, which say where and what to do."""
    if len(text) > MAX_MESSAGE // 4:  # which may be that many bytes
        text = re.sub(r"(\S{100})\S{100,}(\S{100})", r"\1[...]\2", text)  # such as a long path
    if len(text) > 2 * MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]} {text[-MAX_MESSAGE:]}"
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    if len(whole := text.encode()) <= MAX_MESSAGE:
        return text
    start, end = whole[: MAX_MESSAGE * 2 // 3], whole[-MAX_MESSAGE // 4 :]
    return f"{start.decode(errors='ignore')} [...] {end.decode(errors='ignore')}"


class PluginError(TvcError, RuntimeError):
    """A plugin is faulty, or what it offers cannot be used."""


class UnknownNameError(TvcError, LookupError):
    """No installed plugin offers this backbone, block, patch operation, initializer or weights
    name.
    """


class AmbiguousNameError(UnknownNameError):
    """Several plugins offer this short name; a qualified name says which is meant."""


class RecipeError(TvcError, ValueError):
    """A recipe, or the arguments that stand for one, has an unknown key or a value of the wrong
    kind.
    """


class BackboneError(TvcError, RuntimeError):
    """A backbone could not be built, or does not look as its spec says."""


class ParameterError(TvcError, ValueError):
    """A backbone, block, operation, initializer or preprocessing was given what it does not
    take.
    """


class TargetError(TvcError, LookupError):
    """A patch target is not in the model, or nothing can be inserted there."""


class PatchError(TvcError, ValueError):
    """A patch does not fit: conflicting patches, a shape mismatch, or a block that never runs."""


class HeadError(TvcError, ValueError):
    """The head cannot be changed as asked."""


class StageError(TvcError, IndexError):
    """A stage that the backbone does not have."""


class FreezeError(TvcError, ValueError):
    """Freezing or thawing as asked is impossible or would be unsafe."""


class WeightsError(TvcError, RuntimeError):
    """Weights or a checkpoint could not be read, verified or fitted; the model is
    unchanged.
    """


class RegistryWarning(UserWarning):
    """Something about the installed plugins deserves a look, but nothing that was asked for
    failed.
    """


class foreign:  # noqa: N801  read as a verb: with foreign(PatchError, "the block fails"): ...
    """Turn what the code of others raises inside, SystemExit included, into an error of tvc's.

    Errors that already are tvc's, and the user's Ctrl-C, pass unchanged.

    Args:
        error: class of the new error.
        what: what was being done, such as "the block 'acme:se' fails on [1, 8, 4, 4]".
        advice: what to do about it, a sentence after the description of the error.
    """

    # a class, since contextlib.contextmanager takes a RuntimeError made from StopIteration for its
    # own, and drops it
    def __init__(self, error: type[TvcError], what: str, *, advice: str = "") -> None:
        self.error = error
        self.what = what
        self.advice = advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        if raised is None or isinstance(raised, (TvcError, KeyboardInterrupt)):
            return
        said = f"{self.what}: {describe_error(raised)}"
        raise self.error(f"{sentence(said)} {self.advice}" if self.advice else said) from raised


def near_names(given: str, names: Iterable[str], *, most: int = 5) -> list[str]:
    """Return the names that `given` may stand for, best first: cut short, else misspelled."""
    # Compared in lower case and shown as they are spelled. Two rules: names that contain what was
    # given, since people cut names short ("convnext" for convnext_tiny, "cbam" for cbam_block, and
    # not for bam); and letters that are swapped, missing or wrong, by difflib's ratio. Below three
    # letters the first one would find nearly everything.
    # Names longer than any real one are left out: difflib's time is the product of the lengths.
    given = given[:100]
    lowered: dict[str, str] = {}
    for name in names:
        if len(name) <= 100:
            lowered.setdefault(name.lower(), name)
    if given.lower() in lowered:
        return [lowered[given.lower()]]
    found = difflib.get_close_matches(given.lower(), lowered, n=most, cutoff=0.6)
    if len(given) >= 3 and (longer := [name for name in lowered if given.lower() in name]):
        found = sorted(longer, key=lambda name: found.index(name) if name in found else most)
    return [lowered[name] for name in found[:most]]


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the near names, or an empty string where nothing is near."""
    found = near_names(given, names)
    return f" Did you mean {' or '.join(repr(name) for name in found[:3])}?" if found else ""


def what_there_is(given: str, names: Iterable[str], there_is: str = "It takes:") -> str:
    """Return the near names, and after them all names: ' Did you mean 'a'? It takes: a, b'."""
    names = list(names)
    return f"{did_you_mean(given, names)} {there_is} {join_names(names, most=30)}"


def join_names(names: Iterable[str], *, most: int = 12) -> str:
    """Return names as 'a, b, c', cut with a count after `most`; 'none' where there are none."""
    names = list(names)
    if not names:
        return "none"
    rest = len(names) - most
    return ", ".join(names[:most]) + (f", ... ({rest} more)" if rest > 0 else "")


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: '1 class', '2 classes'."""
    end = "" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{end}"


def sentence(text: str) -> str:
    """Return text with an end, so that another sentence can follow: '.' where it has none."""
    text = text.rstrip()
    return text if text.endswith((".", "?", "!")) else f"{text}."


def describe_error(error: BaseException) -> str:
    """Return an error's class and message on one line; a plugin's error may fail to print
    itself.
    """
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message cannot be printed)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"a number of {x.bit_length()} bits"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        if not isinstance(x, type) and (hasattr(x, "shape") or hasattr(x, "state_dict")):
            return f"<{type(x).__name__}>"  # a tensor or network, whose own text takes many lines
        return super().repr_instance(x, level)


def short_repr(value: Any) -> str:
    """Return a value as errors quote it: its repr, cut where it is long or deep."""
    return _Shown().repr(value)
