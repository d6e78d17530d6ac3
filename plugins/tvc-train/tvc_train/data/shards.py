"""Images in a few large tar files, each found by an index beside them.

A folder of shards has `index.safetensors` and `shard-00000.tar`, `shard-00001.tar`, ... The index
says in which file, where, and how long each image is, so any of them can be read at any time: the
order of training is that of other data, and needs no buffer. The tar files are ordinary ones.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor

from tvc_core import foreign

from ..errors import DataError
from .files import FileSamples
from .images import check_header, decode
from .names import Names
from .samples import Samples
from .settings import DataSettings

__all__ = ["INDEX", "ShardSamples", "open_shards", "write_shards"]

INDEX = "index.safetensors"
VERSION = 1
_BLOCK = 512  # of a tar file [bytes]
_KINDS = {
    "version": "i", "shard": "i", "offset": "i", "size": "i", "digest": "u", "part": "u",
    "names": "u", "name_ends": "i", "classes": "u", "class_ends": "i", "sizes": "i",
}  # fmt: skip


class ShardSamples(Samples):
    """Images in tar files.

    Args:
        folder: where they are.
        targets: as of `Samples`.
        names: as of `Samples`.
        settings: what may be decoded.
        index: of each image its shard, offset and size [bytes], int64 [N, 3].
        digests: of each image's bytes, uint8 [N, 16].
    """

    def __init__(
        self,
        folder: Path,
        targets: np.ndarray,
        names: Names,
        settings: DataSettings,
        index: np.ndarray,
        digests: np.ndarray,
    ) -> None:
        super().__init__(targets, names)
        self.folder, self.settings, self.index, self.digests = folder, settings, index, digests

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            DataError: it cannot be read, or is more than may be decoded.
        """
        settings = self.settings
        return decode(
            self._bytes(index), self.where(index), max_pixels=settings.max_pixels,
            formats=settings.formats,
        )  # fmt: skip

    def check(self, index: int) -> None:
        """Look at an image's header.

        Raises:
            DataError: it cannot be decoded, or may not be.
        """
        settings = self.settings
        check_header(
            self._bytes(index), self.where(index), max_pixels=settings.max_pixels,
            formats=settings.formats,
        )  # fmt: skip

    def content(self, index: int) -> bytes:
        """Return a hash of an image's bytes, which reading it holds it against."""
        return self.digests[index].tobytes()

    def size_hint(self, index: int) -> int:
        """Return the size of an image [bytes]."""
        return int(self.index[index, 2])

    def where(self, index: int) -> str:
        """Return an image's name and shard."""
        return f"{self.folder / _name_of(int(self.index[index, 0]))}: {self.names[index]}"

    def take(self, indices: np.ndarray) -> ShardSamples:
        """Return the images at these indices, in their order."""
        return ShardSamples(
            self.folder, self.targets[indices], self.names.take(indices), self.settings,
            self.index[indices], self.digests[indices],
        )  # fmt: skip

    def _bytes(self, index: int) -> bytes:
        shard, offset, size = map(int, self.index[index])
        try:
            with (self.folder / _name_of(shard)).open(
                "rb"
            ) as file:  # of no other thread's or fork's
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            said = f"cannot be read: {error.strerror or error}"
            raise DataError(f"{self.where(index)}: {said}") from error
        if hashlib.blake2b(content, digest_size=16).digest() != self.content(index):
            raise DataError(
                f"{self.where(index)}: is not what {INDEX} says: the shard was changed or damaged "
                "after it was written"
            )
        return content


def write_shards(
    train: FileSamples, val: FileSamples, classes: tuple[str, ...], folder: Path, *,
    shard_bytes: int = 1 << 30,
) -> Path:  # fmt: skip
    """Write the files of images as tar shards with an index beside them.

    Args:
        train: images to train on.
        val: images that are held out.
        classes: names, in the order of the outputs.
        folder: a new one. It is there when everything is written, and not before.
        shard_bytes: size of a shard at most, unless one image is larger.

    Returns:
        The folder.

    Raises:
        DataError: the folder exists or would lie among the images, or an image cannot be read.
    """
    import shutil
    import tempfile

    if folder.exists():
        raise DataError(f"{folder} exists: shards are written into a folder of their own")
    for part in (train, val):
        images = Path(part.folder).resolve()
        if part.lines is None and folder.resolve().is_relative_to(images):
            raise DataError(
                f"{folder} would be in {images}, among the images, and be taken for some of them: "
                "name another folder"
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        _write_into(made, (train, val), classes, shard_bytes)
        made.chmod(0o755)
        made.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _write_into(
    folder: Path, parts: tuple[FileSamples, FileSamples], classes: tuple[str, ...], most: int
) -> None:
    index: list[tuple[int, int, int]] = []
    digests: list[bytes] = []
    names: list[str] = []
    sizes: list[int] = []
    for part, samples in zip(("train", "val"), parts, strict=True):
        for at in range(len(samples)):
            content = samples.raw(at)
            name = f"{part}/{samples.names[at]}"
            if not sizes or (sizes[-1] + len(content) > most and sizes[-1] > 0):
                sizes.append(0)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            padding = b"\0" * (-len(content) % _BLOCK)
            with (folder / _name_of(len(sizes) - 1)).open("ab") as file:
                file.write(header + content + padding)
            index.append((len(sizes) - 1, sizes[-1] + len(header), len(content)))
            sizes[-1] += len(header) + len(content) + len(padding)
            digests.append(hashlib.blake2b(content, digest_size=16).digest())
            names.append(name)
    for shard in range(len(sizes)):
        with (folder / _name_of(shard)).open("ab") as file:
            file.write(b"\0" * 2 * _BLOCK)  # the end of a tar file
    places = np.array(index, np.int64).reshape(-1, 3)
    kept, named = Names(names), Names(classes)
    columns = dict(  # noqa: C408  read as keyword arguments
        version=np.array([VERSION]),
        shard=places[:, 0],
        offset=places[:, 1],
        size=places[:, 2],
        digest=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
        part=np.repeat(np.arange(2, dtype=np.uint8), [len(each) for each in parts]),
        targets=np.concatenate([each.targets for each in parts]),
        names=kept.content,
        name_ends=kept.ends,
        classes=named.content,
        class_ends=named.ends,
        sizes=np.array([size + 2 * _BLOCK for size in sizes], np.int64),
    )
    made = {name: np.ascontiguousarray(column) for name, column in columns.items()}
    (folder / INDEX).write_bytes(save(made))


def open_shards(
    folder: Path, settings: DataSettings
) -> tuple[ShardSamples, ShardSamples, tuple[str, ...]]:
    """Return the images to train on, those that are held out, and the classes: those of the
    settings in their order, or all in that of the index.

    Raises:
        DataError: the index is damaged, does not fit the shards, or has other classes.
    """
    file = folder / INDEX
    advice = "Write the shards again: 'tvc data RECIPE --write-shards FOLDER'."
    with foreign(DataError, f"{file}: the index cannot be read", advice=advice):
        read = load(file.read_bytes())
        found = {name: read[name] for name in (*_KINDS, "targets")}
        _check_index(found, folder)
        names = Names.from_arrays(found["names"], found["name_ends"])
        classes = tuple(Names.from_arrays(found["classes"], found["class_ends"]))
    labels = "one" if found["targets"].ndim == 1 else "many"
    if labels != settings.labels:
        raise DataError(f"{file}: its images have {labels}: write 'labels: {labels}' into data")
    if settings.classes is not None:
        if sorted(settings.classes) != sorted(classes):
            raise DataError(f"data.classes: those of {file} are {', '.join(classes[:20])}")
        moved = np.array([settings.classes.index(name) for name in classes], np.int64)
        targets, classes = found["targets"], settings.classes
        found["targets"] = moved[targets] if labels == "one" else targets[:, np.argsort(moved)]
    places = np.stack([found[name] for name in ("shard", "offset", "size")], axis=1)
    whole = ShardSamples(folder, found["targets"], names, settings, places, found["digest"])
    train, val = (whole.take(np.flatnonzero(found["part"] == part)) for part in (0, 1))
    return train, val, classes


def _check_index(found: dict[str, np.ndarray], folder: Path) -> None:
    """Raise unless an index is whole and fits the shards."""
    if any(found[name].dtype.kind != kind for name, kind in _KINDS.items()):
        raise ValueError("a column has another type")
    if found["version"].tolist() != [VERSION]:
        raise ValueError(f"version {found['version'].tolist()}, and this is {VERSION}")
    num, sizes = len(found["shard"]), found["sizes"]
    columns = ("shard", "offset", "size", "digest", "part", "targets")
    if any(len(found[name]) != num for name in columns) or len(found["name_ends"]) != num + 1:
        raise ValueError("its columns have different lengths")
    if found["digest"].shape != (num, 16) or found["targets"].dtype not in (np.int64, np.float32):
        raise ValueError("a column has another shape or type")
    for name in ("name", "class"):
        content, ends = found["names" if name == "name" else "classes"], found[f"{name}_ends"]
        if ends[0] != 0 or ends[-1] != len(content) or (np.diff(ends) < 0).any():
            raise ValueError(f"the {name}s are cut off")
    if num and (found["shard"].min() < 0 or found["shard"].max() >= len(sizes)):
        raise ValueError("it names a shard that there is not")
    if num and (found["offset"].min() < 0 or found["size"].min() < 0):
        raise ValueError("an image lies before its shard")
    if num and (found["offset"] + found["size"] > sizes[found["shard"]]).any():
        raise ValueError("an image lies beyond its shard")
    count = len(found["class_ends"]) - 1
    targets = found["targets"]
    fits = targets.shape[1:] == (count,) if targets.ndim == 2 else targets.ndim == 1
    if not fits or (targets.ndim == 1 and num and not 0 <= targets.min() <= targets.max() < count):
        raise ValueError("it has a class without a name")
    for shard, size in enumerate(sizes.tolist()):
        path = folder / _name_of(shard)
        if not path.is_file():
            raise ValueError(f"{path.name} is not there")
        if path.stat().st_size != size:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, and should have {size}")


def _name_of(shard: int) -> str:
    return f"shard-{shard:05d}.tar"
