"""Patterns of tensor names: which keys a user means, and how the user renames them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..errors import WeightsError, describe_error

__all__ = ["Pattern", "Rename", "matcher", "renamed"]

Pattern = str | re.Pattern[str]
Rename = Mapping[Any, str | None] | Callable[[str], str | None]

_MARK = "re:"
_SPECIAL = re.compile(r"[\^$\\()+|{}]")


def matcher(patterns: Iterable[Pattern] | Pattern) -> list[tuple[str, re.Pattern[str]]]:
    """Return each pattern as it was written, with an expression to be searched for in a key.

    - Words and dots mean whole dotted segments, anywhere: "fc" matches fc.weight, not fc1.weight.
    - With `*`, `?` or `[...]` it is a glob from the root, as the targets of patches are: `*` is in
      one segment, `**` any number of segments. A glob that means a module means its tensors.
    - "re:..." and compiled expressions are regular expressions, searched for.

    Raises:
        WeightsError: a pattern is no text, is no valid expression, or is one without its mark.
    """
    listed = [patterns] if isinstance(patterns, (str, re.Pattern)) else list(patterns)
    return [_compiled(pattern) for pattern in listed]


def _compiled(pattern: Any) -> tuple[str, re.Pattern[str]]:
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        return f"{_MARK}{pattern.pattern}", pattern
    if not isinstance(pattern, str) or not pattern:
        raise WeightsError(f"a pattern is a string that is not empty, not {pattern!r}")
    if pattern.startswith(_MARK):
        return pattern, _expression(pattern.removeprefix(_MARK), pattern)
    if _SPECIAL.search(pattern):
        raise WeightsError(
            f"the pattern {pattern!r} looks like a regular expression; mark it as one: "
            f"{_MARK + pattern!r}"
        )
    if any(letter in pattern for letter in "*?["):
        return pattern, re.compile(_glob(pattern))
    return pattern, re.compile(rf"(?:^|\.){re.escape(pattern.strip('.'))}(?:\.|$)")


def _expression(text: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise WeightsError(f"the pattern {pattern!r} is no regular expression: {error}") from error


def _glob(pattern: str) -> str:
    """Return an expression for a glob.

    Each part becomes itself, which is not empty, and what ends it: a dot or the end of the key. So
    an expression that has matched ends where a segment ends, and what follows is inside the module
    that it means.
    """
    parts = []
    for part in pattern.split("."):
        if part == "**":
            parts.append(r"(?:[^.]+(?:\.|$))*")
            continue
        text = ""
        for piece in re.findall(r"\[[^\]]+\]|.", part):
            if piece in "*?":
                text += "[^.]*" if piece == "*" else "[^.]"
            elif len(piece) > 1:
                text += "[^" + piece[2:] if piece[1] == "!" else piece
            else:
                text += re.escape(piece)
        parts.append(rf"(?=[^.]){text}(?:\.|$)")
    return "^" + "".join(parts)


def renamed(
    keys: Iterable[str], rename: Rename | None
) -> tuple[dict[str, str], set[str], list[str]]:
    """Return the new name of each key, the new names that a rule gave, and the rules that met no
    key. A key whose new name is None is left out.

    Args:
        keys: the checkpoint's.
        rename: a mapping of old to new names: of tensors, of modules (whatever is in them goes
            along), or of expressions "re:..." to replacements as `re.sub` takes them. Of several
            that fit, the longest name counts, before expressions in their order. Or a function of
            a key.

    Raises:
        WeightsError: two keys would get one name, or a rule is faulty.
    """
    listed = list(keys)
    if rename is None:
        return {key: key for key in listed}, set(), []
    used: set[Any] = set()
    if not callable(rename) and not isinstance(rename, Mapping):
        raise WeightsError(
            f"rename is a mapping of old to new names, or a function, not {rename!r}"
        )
    given: dict[str, str | None]
    if callable(rename):
        new = {key: _called(rename, key) for key in listed}
        given = {key: name for key, name in new.items() if name != key}
    else:
        rules = _rules(rename)
        given = dict(_by_rules(listed, rename, rules, used))
        new = {key: given.get(key, key) for key in listed}
    by_name: dict[str, str] = {}
    for key, name in new.items():
        if name is None:
            continue
        if not isinstance(name, str):
            raise WeightsError(f"rename gives {name!r} for {key!r}: a name is a string, or None")
        if name in by_name:
            raise WeightsError(f"rename gives one name, {name!r}, to {by_name[name]!r} and {key!r}")
        by_name[name] = key
    unused = [] if callable(rename) else [str(rule) for rule in rename if rule not in used]
    names = {key: name for name, key in by_name.items()}
    return names, {names[key] for key in given if key in names}, unused


def _called(rename: Callable[[str], str | None], key: str) -> str | None:
    try:
        return rename(key)
    except Exception as error:  # the user's own function
        raise WeightsError(f"rename fails for {key!r}: {describe_error(error)}") from error


def _rules(rename: Mapping[Any, str | None]) -> list[tuple[Any, re.Pattern[str]]]:
    rules = []
    for old in rename:
        if isinstance(old, re.Pattern) or (isinstance(old, str) and old.startswith(_MARK)):
            rules.append((old, _compiled(old)[1]))
        elif not isinstance(old, str):
            raise WeightsError(f"rename has the rule {old!r}: a rule is a name, or 're:...'")
    return rules


def _checked(old: Any, new: Any) -> str | None:
    if new is None or isinstance(new, str):
        return new
    raise WeightsError(f"rename gives {new!r} for {old!r}: a name is a string, or None")


def _by_rules(
    keys: Iterable[str],
    rename: Mapping[Any, str | None],
    rules: list[tuple[Any, re.Pattern[str]]],
    used: set[Any],
) -> Iterator[tuple[str, str | None]]:
    """Yield the keys that a rule is for, with their new names."""
    for key in keys:
        parts = key.split(".")
        whole = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        if (old := next((each for each in whole if each in rename), None)) is not None:
            used.add(old)
            new, rest = _checked(old, rename[old]), key[len(old) :]
            yield key, None if new is None else f"{new}{rest}".strip(".")
            continue
        for old, expression in rules:
            if expression.search(key):
                used.add(old)
                new = _checked(old, rename[old])
                try:
                    yield key, None if new is None else expression.sub(new, key)
                except (re.error, IndexError) as error:
                    raise WeightsError(
                        f"rename: {new!r} cannot replace {old!r}: {error}"
                    ) from error
                break
