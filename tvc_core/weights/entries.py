"""What is in a checkpoint: a state dict, or entries of which some are state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, join_names, short_repr, what_there_is

__all__ = ["Checkpoint", "check_state_dict", "pick_entry"]

_DEPTH = 8
"""Levels of mappings that are searched for state dicts."""

_EXTRA = "_extra_state"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a model is to be filled from.

    Args:
        tensors: by name.
        extra: what modules keep beside their tensors (`get_extra_state`), by name.
        metadata: versions of the modules that wrote it, by their paths, as torch keeps them; None
            where the file has none.
        class_names: of the outputs, by the name of the head, which is a part of its tensors' names;
            "" is a model's only one.
        are_names_given: the user says so, not the file.
        name: what errors call it.
    """

    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    are_names_given: bool = False
    name: str = "the checkpoint"

    @staticmethod
    def of(content: Any, name: str, class_names: Any = None) -> Checkpoint:
        """Take a state dict apart.

        Raises:
            WeightsError: it is none.
        """
        state = check_state_dict(content, name)
        metadata = getattr(content, "_metadata", None)
        return Checkpoint(
            tensors={k: v.detach() for k, v in state.items() if not k.endswith(_EXTRA)},
            extra={k: v for k, v in state.items() if k.endswith(_EXTRA)},
            metadata=metadata if isinstance(metadata, Mapping) else None,
            class_names=_by_head(class_names),
            name=name,
        )

    def names_of(self, key: str | None, head: str) -> tuple[str, ...] | None:
        """Return the class names of the head that a tensor belongs to.

        Args:
            key: the checkpoint's name of the tensor; None where a migration made it.
            head: where in the model it goes to.
        """
        if key is None:
            return self.class_names.get(head)
        inside = (part for part in reversed(key.split(".")[:-1]) if part in self.class_names)
        return self.class_names.get(next(inside, ""))


def _by_head(names: Any) -> dict[str, tuple[str, ...]]:
    """Return class names by head; nothing of what is no list of names."""
    by_head = names if isinstance(names, Mapping) else {"": names}
    return {
        str(head): tuple(each)
        for head, each in by_head.items()
        if isinstance(each, (list, tuple)) and all(isinstance(name, str) for name in each)
    }


def pick_entry(content: Any, entry: str | Sequence[str] | None, name: str) -> Any:
    """Return one entry of a checkpoint.

    Args:
        content: the checkpoint.
        entry: its name, or the way to it, as "state.model" or ("state", "model"); None for the
            whole.
        name: what errors call the checkpoint.

    Raises:
        WeightsError: there is no such entry.
    """
    if entry is None:
        return content
    words = [entry] if isinstance(entry, str) else entry
    if not isinstance(words, (list, tuple)) or not all(isinstance(part, str) for part in words):
        raise WeightsError(f"entry is a name, as 'model' or 'state.model', not {entry!r}")
    whole = entry if isinstance(entry, str) else ".".join(entry)
    is_key = isinstance(entry, str) and isinstance(content, Mapping) and entry in content
    for part in [whole] if is_key else whole.split(".") if isinstance(entry, str) else entry:
        if not isinstance(content, Mapping):
            raise WeightsError(f"{name}: has no entry {whole!r}: {part!r} is in {_kind(content)}")
        if part not in content:
            has = what_there_is(str(part), map(str, content), "It has:")
            raise WeightsError(f"{name}: has no entry {whole!r}.{has}")
        content = content[part]
    return content.state_dict() if isinstance(content, nn.Module) else content


def check_state_dict(
    content: Any, name: str, say: Callable[[str], str] = "entry={!r}".format
) -> dict[str, Any]:
    """Return `content` if it is a state dict of plain tensors.

    Args:
        content: what is in a checkpoint.
        name: what errors call the checkpoint.
        say: how the user says which entry of a checkpoint is meant.

    Raises:
        WeightsError: it is something else; for a training checkpoint the message says which
            entries hold state dicts.
    """
    if not isinstance(content, Mapping) or not content:
        what = f"holds {_kind(content)}, not a state dict (a mapping of names to tensors)"
        hint = ". Pass its state_dict()" if hasattr(content, "state_dict") else ""
        raise WeightsError(f"{name}: {what}{hint}")
    wrong = [
        key
        for key, value in content.items()
        if not isinstance(key, str) or (not isinstance(value, Tensor) and not key.endswith(_EXTRA))
    ]
    if wrong:
        entries = ", ".join(f"{short_repr(key)} ({_kind(content[key])})" for key in wrong[:4])
        raise WeightsError(
            f"{name}: not a state dict: {len(wrong)} of its entries are no tensors: "
            f"{entries}.{_advice(content, say)}"
        )
    for key, value in content.items():
        if isinstance(value, Tensor) and (odd := _odd(value)):
            raise WeightsError(
                f"{name}: {short_repr(key)} is {odd}; only plain tensors can be loaded"
            )
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{name}: holds no tensors")
    return content  # type: ignore[return-value]


def _odd(tensor: Tensor) -> str:
    """Return what a tensor is that is no plain one, else an empty string."""
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype})"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided or tensor.is_meta:
        return f"a {tensor.layout} tensor on {tensor.device}"
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        kind = type(tensor).__name__
        if kind in ("DTensor", "ShardedTensor"):
            return f"a {kind}, a part of a tensor (gather it first, as by full_tensor())"
        return "a FakeTensor" if kind == "FakeTensor" else ""
    return ""


def _advice(content: Mapping[Any, Any], say: Callable[[str], str]) -> str:
    found = list(_entries(content, (), _DEPTH))
    if not found:
        modules = [key for key, value in content.items() if isinstance(value, nn.Module)]
        if modules:
            return f" Pass the state dict of its entry: checkpoint[{modules[0]!r}].state_dict()."
        named = sum(isinstance(key, str) and isinstance(t, Tensor) for key, t in content.items())
        if 2 * named > len(content):
            return " Read the file by torch.load, and pass its tensors without the others."
        listed = [
            key
            for key, value in content.items()
            if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value)
        ]
        if listed:  # as the shadow parameters of an average
            return (
                f" {short_repr(listed[0])} has tensors without names: zip them with those of the "
                "model's parameters that were averaged"
            )
        return ""
    texts = []
    for path, count in found[:8]:
        code = "checkpoint" + "".join(f"[{part!r}]" for part in path)
        texts.append(f"{say('.'.join(path))} ({count} tensors), which is {code}")
    return f" Say which entry is meant: {join_names(texts)}."


def _entries(
    content: Mapping[Any, Any], path: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the way to each state dict inside, and the number of its tensors."""
    for key, value in content.items():
        if not isinstance(value, Mapping) or not isinstance(key, str) or not depth:
            continue
        tensors = sum(isinstance(item, Tensor) for item in value.values())
        if tensors and tensors == sum(not str(k).endswith(_EXTRA) for k in value):
            yield (*path, key), tensors
        else:
            yield from _entries(value, (*path, key), depth - 1)


def _kind(value: Any) -> str:
    empty = isinstance(value, Mapping) and not value
    return f"an empty {type(value).__name__}" if empty else f"a {type(value).__name__}"
