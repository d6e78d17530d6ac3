"""What became of every tensor of a checkpoint and of the model that it went into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import join_names

__all__ = ["LoadReport", "Mismatch", "Remark"]


@dataclass(frozen=True)
class Mismatch:
    """A tensor that both sides have and that does not fit: by its shape, by the names of a head's
    classes, or, for a bias, because its weight does not.
    """

    key: str
    checkpoint: tuple[int, ...]
    model: tuple[int, ...]
    reason: str = ""

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.key}: checkpoint {list(self.checkpoint)}, model {list(self.model)}{why}"


@dataclass(frozen=True)
class Remark:
    """A tensor of the model, and what there is to say about it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor.

    Each key of the model is in exactly one of `loaded`, `converted`, `mismatched`, `refused`,
    `missing` and `excluded`. Each key of the checkpoint is in exactly one of the values of
    `sources`, `migrated` and `unexpected`. Keys are the model's unless something else is said.

    Args:
        loaded: they have the checkpoint's bits now, or the same numbers in a type that holds them.
        converted: filled with what follows from the checkpoint: rounded to a narrower type,
            reshaped, mixed for another number of channels, rows by class name, or made by a
            module's own migration.
        mismatched: on both sides with different shapes or class names, and biases that go with
            such a weight; not loaded.
        refused: values that cannot be right or would not survive the cast; not loaded.
        missing: not in the checkpoint.
        excluded: left alone because a pattern excludes them, or none includes them.
        unexpected: in the checkpoint (by its own key), not in the model.
        migrated: in the checkpoint (by its own key), taken by a module's own migration for old
            files: merged into others, or out of use.
        initialized: missing, mismatched or refused ones that `init_new_layers` filled.
        unmatched_patterns: patterns and rules of `rename` that matched no key.
        prefix: what was taken off all keys of the checkpoint that fit, such as "module.".
        rules: how the checkpoint's names became the model's, in words.
        casts: type changes that lost nothing, with the number of tensors.
        sources: for a key of the model, the key of the checkpoint that belongs to it.
        num_bytes: size of the model's tensors [bytes].
        loaded_bytes: size of those that were loaded or converted [bytes].
    """

    loaded: tuple[str, ...] = ()
    converted: tuple[Remark, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    refused: tuple[Remark, ...] = ()
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    migrated: tuple[str, ...] = ()
    initialized: tuple[str, ...] = ()
    unmatched_patterns: tuple[str, ...] = ()
    prefix: str = ""
    rules: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    loaded_bytes: int = 0

    @property
    def num_loaded(self) -> int:
        """Tensors that were filled from the checkpoint [tensors]."""
        return len(self.loaded) + len(self.converted)

    @property
    def num_tensors(self) -> int:
        """Tensors of the model [tensors]."""
        others = (self.mismatched, self.refused, self.missing, self.excluded)
        return self.num_loaded + sum(map(len, others))

    @property
    def load_ratio(self) -> float:
        """Share of the model's tensors that were filled from the checkpoint, 0 to 1."""
        return self.num_loaded / self.num_tensors if self.num_tensors else 0.0

    @property
    def byte_ratio(self) -> float:
        """The same share by size, 0 to 1."""
        return self.loaded_bytes / self.num_bytes if self.num_bytes else self.load_ratio

    @property
    def uninitialized(self) -> tuple[str, ...]:
        """Keys that keep the values they had before."""
        left = [each.key for each in self.mismatched] + [each.key for each in self.refused]
        rest = (*self.missing, *left)
        return tuple(key for key in rest if key not in set(self.initialized))

    def summary(self) -> str:
        """Return a few lines for a person."""
        first = f"loaded {self.num_loaded} of {self.num_tensors} tensors ({self.load_ratio:.1%})"
        if self.prefix:
            first += f", keys without their prefix {self.prefix!r}"
        left = self.initialized or self.missing or self.mismatched or self.refused
        rows: list[tuple[str, Iterable[object]]] = [
            ("converted", self.converted),
            ("mismatched", self.mismatched),
            ("refused", self.refused),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("migrated", self.migrated),
            ("excluded", self.excluded),
            ("initialized", self.initialized),
            ("keep their values", self.uninitialized if left else ()),
            ("patterns that matched nothing", self.unmatched_patterns),
            ("names", self.rules),
            ("types", self.casts),
        ]
        lines = [first]
        if self.num_bytes:
            lines.append(f"  by size: {self.byte_ratio:.1%} of the bytes")
        for title, items in rows:
            texts = [printable(item) for item in items]
            if texts:
                lines.append(f"  {title}: {len(texts)} ({join_names(texts, most=4)})")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def printable(item: object) -> str:
    """Return a text from a file as it can be shown: no control characters, not without end."""
    text = str(item)
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= 300 else f"{text[:300]}..."
