"""Features on the disk: written whole or not at all, mapped into memory, bounded.

An entry is a folder with the name of its key. It is made under another name, brought to the disk,
and renamed when it is whole, so what a killed process leaves behind is never taken for one; the
next one removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.remembering import cache_folder
from ..errors import TrainingError

__all__ = ["FeatureStore", "default_folder"]

_BUILDING = ".building-"
_FEATURES, _FACTS, _LOCK = "features.bin", "facts.json", ".lock"
_GIB = 1 << 30


def default_folder() -> Path:
    """Return $XDG_CACHE_HOME/tvc/features, by default ~/.cache/tvc/features.

    Raises:
        TrainingError: there is no home.
    """
    if (base := cache_folder()) is None:
        raise TrainingError(
            "data.cache: there is no home folder to keep features in: set XDG_CACHE_HOME to a "
            "folder that can be written"
        )
    return base / "features"


class FeatureStore:
    """A folder of features.

    Args:
        folder: where they are kept; made where it is not there.
        most: of all entries together [bytes]; those that were used longest ago make room.
    """

    def __init__(self, folder: Path, *, most: int) -> None:
        self.folder, self.most = folder, most

    def find(self, key: str) -> Tensor | None:
        """Return features [rows, ...], mapped into memory; None where there are none of this key,
        or they are damaged.
        """
        entry = self.folder / key
        facts = _read_facts(entry / _FACTS)
        if facts is None:
            return None
        file, dtype = entry / _FEATURES, getattr(torch, str(facts["dtype"]))
        count = math.prod(facts["shape"])
        whole = file.is_file() and file.stat().st_size == count * dtype.itemsize
        if not whole or _digest_of(file) != facts["digest"]:
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # it was used now
        if not count:
            return torch.empty(facts["shape"], dtype=dtype)
        mapped = torch.from_file(str(file), shared=False, size=count, dtype=dtype)
        return mapped.view(facts["shape"])

    def build(
        self,
        key: str,
        facts: dict[str, Any],
        parts: Iterable[Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        """Write features, unless another process has, and return them.

        Args:
            key: of the entry.
            facts: what it stands for; kept beside it for who looks.
            parts: rows in their order; taken one after another.
            shape: of all of them.
            dtype: of all of them.

        Raises:
            TrainingError: they are more than may be kept, or cannot be written.
        """  # fmt: skip
        size = math.prod(shape) * dtype.itemsize
        if size > self.most:
            raise TrainingError(
                f"data.cache: the features take {size / _GIB:.2f} GiB, {shape[0]:,} rows of "
                f"{'x'.join(map(str, shape[1:]))}, and data.max_cache is "
                f"{self.most / _GIB:.2f} GiB. Raise it, use fewer views, freeze more, or leave "
                "the cache out"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._clean()
                if (there := self.find(key)) is not None:
                    return there
                # what is damaged; here alone no one else can have built it again since the look
                shutil.rmtree(self.folder / key, ignore_errors=True)
                self._make_room(size)
                free = shutil.disk_usage(self.folder).free
                if size > free:
                    raise TrainingError(
                        f"data.cache: the features take {size / _GIB:.2f} GiB, and "
                        f"{self.folder} has {free / _GIB:.2f} GiB left"
                    )
                self._write(key, facts, parts, shape, dtype)
        except OSError as error:
            said = f"{self.folder}: features cannot be kept: {error.strerror or error}"
            raise TrainingError(f"data.cache: {said}") from error
        found = self.find(key)
        if found is None:
            raise TrainingError(f"data.cache: {self.folder / key} was changed as it was written")
        return found

    def _write(
        self, key: str, facts: dict[str, Any], parts: Iterable[Tensor], shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        made = self.folder / f"{_BUILDING}{key}"
        made.mkdir()
        whole, rows = hashlib.blake2b(), 0
        try:
            with (made / _FEATURES).open("wb") as file:
                for part in parts:
                    flat = part.detach().to("cpu", dtype).contiguous().reshape(-1)
                    content = flat.view(torch.uint8).numpy().tobytes()
                    whole.update(content)
                    file.write(content)
                    rows += len(part)
                file.flush()
                os.fsync(file.fileno())
            if rows != shape[0]:
                raise TrainingError(f"data.cache: {rows} rows of {shape[0]} were computed")
            said = {
                "shape": list(shape),
                "dtype": str(dtype).removeprefix("torch."),
                "digest": whole.hexdigest(),
                "facts": facts,
            }
            with (made / _FACTS).open("w", encoding="utf-8") as text:
                json.dump(said, text, indent=1, sort_keys=True, default=str)
                text.flush()
                os.fsync(text.fileno())
            made.rename(self.folder / key)
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(handle)  # the name as well
            finally:
                os.close(handle)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what killed processes have left. Nobody builds now but this one."""
        for entry in self.folder.glob(f"{_BUILDING}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Remove the entries that were used longest ago, until there is room."""
        entries = [each for each in self.folder.iterdir() if (each / _FACTS).is_file()]
        entries.sort(key=lambda each: each.stat().st_mtime, reverse=True)
        total = size
        for entry in entries:
            total += sum(file.stat().st_size for file in entry.iterdir())
            if total > self.most:  # who has it mapped keeps it
                shutil.rmtree(entry, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process builds here. The system lets go of a killed one's lock."""
        with (self.folder / _LOCK).open("wb") as file:
            try:
                import fcntl
            except ImportError:  # Windows
                yield
                return
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read_facts(file: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(file.read_bytes())
        shape, dtype = facts["shape"], facts["dtype"]
        fits = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        fits = fits and isinstance(facts["digest"], str)
        fits = fits and dtype in ("float32", "float64", "float16", "bfloat16")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return facts if fits else None


def _digest_of(file: Path) -> str:
    whole = hashlib.blake2b()
    with file.open("rb") as opened:
        while content := opened.read(1 << 22):
            whole.update(content)
    return whole.hexdigest()
