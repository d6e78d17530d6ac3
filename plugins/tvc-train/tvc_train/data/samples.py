"""Images with their targets, by number; where they come from is the subclass's business."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .names import Names

__all__ = ["HEADER_PRINT", "ArraySamples", "Samples", "pixel_print"]


HEADER_PRINT = b"\1" * 16


def pixel_print(image: Tensor) -> bytes:
    """Return a hash of an image's pixels."""
    pixels = image.contiguous().numpy()
    shape = np.array(pixels.shape).tobytes()
    return hashlib.blake2b(shape + pixels.tobytes(), digest_size=16).digest()


class Samples(ABC):
    """Images with their targets. All that is kept of each is in arrays; an image is read when it is
    asked for, and worker processes may do that.

    Args:
        targets: the class of each image, int64 [N]; or whether each class is in it, float32 [N, K].
        names: of each image, as a user would look for it: a path, or a number in a data set.
    """

    def __init__(self, targets: np.ndarray, names: Sequence[str]) -> None:
        self.targets = targets
        self.names = names if isinstance(names, Names) else Names(names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            DataError: it cannot be read, or is more than may be decoded.
        """

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Return what identifies an image's content: equal for equal files, and only for them.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def take(self, indices: np.ndarray) -> Samples:
        """Return the images at these indices, in their order."""

    def check(self, index: int) -> None:  # noqa: B027  nothing to look at in most
        """Look at an image without decoding it.

        Raises:
            DataError: it cannot be decoded, or may not be.
        """

    def look(self, index: int, *, full: bool) -> tuple[bytes, bytes]:
        """Return a fingerprint of an image's pixels, equal for equal ones and never all zeros, and
        what `content` returns, or nothing where that would take as long again.

        Args:
            index: of the image.
            full: decode it; else only its header is looked at, and all have one fingerprint.

        Raises:
            DataError: it cannot be decoded, or may not be.
        """
        if full:
            return pixel_print(self.read(index)), b""
        self.check(index)
        return HEADER_PRINT, b""

    def recall(self) -> None:  # noqa: B027  most are told nothing
        """Load what earlier starts have kept of the images."""

    def learn(self, index: int, prints: bytes, content: bytes) -> None:  # noqa: B027
        """Take note of what `look` has returned in another process."""

    def remember(self) -> None:  # noqa: B027
        """Keep what is known of the images for the next start."""

    def size_hint(self, index: int) -> int:
        """Return a number that is equal for equal images, such as the size of a file."""
        return 0

    def where(self, index: int) -> str:
        """Return where an image stands in what the user gave, for a message about it."""
        return self.names[index]

    def digest(self) -> str:
        """Return a hash over all names, targets and contents.

        Raises:
            DataError: an image cannot be read.
        """
        whole = hashlib.sha256(f"{self.targets.dtype}{self.targets.shape}".encode())
        whole.update(np.ascontiguousarray(self.targets).tobytes())
        for index, name in enumerate(self.names):
            whole.update(f"{len(name)}:{name}".encode("utf-8", "surrogateescape"))
            whole.update(self.content(index))
        return whole.hexdigest()


class ArraySamples(Samples):
    """Images that are in memory.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
        targets: as of `Samples`.
        names: as of `Samples`.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> None:
        super().__init__(targets, names)
        self.images = images

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]."""
        image = torch.from_numpy(np.array(self.images[index]))
        return image.movedim(-1, 0) if image.ndim == 3 else image.expand(3, -1, -1)

    def content(self, index: int) -> bytes:
        """Return a hash of an image's pixels."""
        image = np.ascontiguousarray(self.images[index])
        return hashlib.blake2b(image.tobytes(), digest_size=16).digest()

    def take(self, indices: np.ndarray) -> ArraySamples:
        """Return the images at these indices, in their order."""
        names = self.names.take(indices)
        return ArraySamples(self.images[indices], self.targets[indices], names)
