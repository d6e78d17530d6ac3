"""Which images are held out, where the data do not say."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from .order import seed_of
from .samples import Samples

__all__ = ["copies", "split_indices"]


def split_indices(
    targets: np.ndarray, *, part: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images to train on and which to hold out, as int64 indices in their order.

    Of each class the same part is held out, at least one image where it has two; of images with
    many labels, of each set of labels. Of a group the first image decides, and counts as one: so no
    class is held out as a whole.

    Args:
        targets: int64 [N] or float32 [N, K].
        part: to hold out, above 0 and below 1.
        seed: of the choice.
        groups: int64 [N]; images of one group, such as copies of one file, stay together.
    """
    whole = np.arange(len(targets)) if groups is None else groups
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    targets = targets[first]
    strata = targets if targets.ndim == 1 else np.unique(targets, axis=0, return_inverse=True)[1]
    raw = np.random.Philox(seed_of("split", seed)).random_raw(len(whole))[first]
    held = np.zeros(len(first), bool)
    # by stratum, and within it by a random number
    order = np.lexsort((raw, strata.reshape(-1)))
    bounds = np.flatnonzero(np.diff(strata.reshape(-1)[order])) + 1
    for members in np.split(order, bounds):
        count = min(max(round(part * len(members)), 1), len(members) - 1)
        held[members[:count]] = True
    held = held[inverse.reshape(-1)]
    return np.flatnonzero(~held), np.flatnonzero(held)


def copies(samples: Samples) -> np.ndarray:
    """Return a number for each image, int64 [N], which is equal for equal contents.

    Only images of one size are read; one that cannot be read is alone.
    """
    sizes = np.array([samples.size_hint(index) for index in range(len(samples))], np.int64)
    groups = np.arange(len(samples))
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    for index in np.flatnonzero(counts[inverse.reshape(-1)] > 1).tolist():
        try:
            groups[index] = first.setdefault(samples.content(index), index)
        except DataError:  # which the check of the data names
            continue
    return groups
