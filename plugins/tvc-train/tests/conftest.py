"""Pictures and recipes that train in a second."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


def write_photos(folder: Path, *, classes: int = 3, each: int = 8, seed: int = 0) -> Path:
    """Write pictures of noise, each class with another color, and return their folder."""
    draw = np.random.default_rng(seed)
    for number in range(classes):
        home = folder / f"class{number}"
        home.mkdir(parents=True)
        for index in range(each):
            pixels = draw.integers(0, 90, (36, 40, 3))
            pixels[..., number % 3] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{index}.png")
    return folder


@contextmanager
def _other_modes() -> Iterator[None]:
    """Set all that a script may have set of torch for the rest of its work."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def other_modes() -> Callable[[], AbstractContextManager[None]]:
    """Return what makes a context in which a script has set torch's modes."""
    return _other_modes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with 24 pictures in three classes."""
    return write_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def imported() -> None:
    """Import once what forks of this process would import each."""
    for name in (
        "lightning_fabric.strategies.ddp", "torch.distributed.fsdp", "torch.distributed.tensor",
        "torch._dynamo", "torchmetrics.functional.classification", "sklearn.datasets",
    ):  # fmt: skip
        importlib.import_module(name)


@pytest.fixture(scope="session")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a folder that no test changes."""
    return write_photos(tmp_path_factory.mktemp("shared") / "photos")


@pytest.fixture
def recipe(photos: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a recipe of two short phases: `recipe(ema=0.9)`."""

    def make(**training: Any) -> dict[str, Any]:
        phases = [
            {"epochs": 1, "rate": 3e-3},
            {"epochs": 1, "rate": 1e-3, "thaw": [-1], "warmup": 0.5},
        ]
        return {
            "name": "toy",
            "backbone": {"name": "mobilenet_v3_small", "weights": None},
            "data": {"path": str(photos), "size": 32, "augment": "light"},
            "training": {"batch_size": 8, "phases": phases, **training},
        }

    return make
