"""Fine-tuning on a GPU beside torchvision's reference loop: images a second, side by side.

    python tests/bench/gpu_training.py --photos FOLDER [--batch 128 32]

ResNet-50, all of it thawed, 224 pixels, trained by a recipe with `precision: bfloat16` and
`layout: channels_last`, without and with `compile: true`, beside the loop of torchvision's
references/classification/train.py, written again from what it does: as it starts (float32,
cuDNN's benchmark, SGD, accuracies read after each step) and with its `--amp`. Once with images that
are ready in memory, as either's loader hands them on (8 bits here, normalized float32 there), and
once from JPEG files in 16 processes. Asserts nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchvision
import tvc_train.data.batches
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from tvc_train import fit
from tvc_train.showing import Display

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS = 20, 60
"""What is timed: the steps after the first ones, to the last."""


def now() -> float:
    """Return the time at which the device has done all [s]."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# -- torchvision's reference loop ------------------------------------------------------------------


def reference(batches: Iterable[tuple[Tensor, Tensor]], *, amp: bool) -> float:
    """Train as the script does, and return the seconds of a step."""
    torch.backends.cudnn.benchmark = True
    model = torchvision.models.resnet50(num_classes=1000).to(DEVICE).train()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(DEVICE) if amp else None
    seen, begin = [0.0, 0.0, 0.0], 0.0
    for step, (images, targets) in enumerate(batches, 1):
        images, targets = images.to(DEVICE), targets.to(DEVICE)
        with torch.autocast(DEVICE, enabled=amp):
            output = model(images)
            loss = criterion(output, targets)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        right = output.topk(5, 1).indices.t() == targets[None]
        figures = (loss, right[:1].sum() * 100 / len(targets), right.sum() * 100 / len(targets))
        seen = [sum(pair) for pair in zip(seen, (each.item() for each in figures), strict=True)]
        if step == STEPS[0]:
            begin = now()
        elif step == STEPS[1]:
            break
    torch.backends.cudnn.benchmark = False
    return (now() - begin) / (STEPS[1] - STEPS[0])


def files(folder: Path, batch_size: int, workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the script's loader of a folder."""
    prepare = v2.Compose([
        v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
        v2.ToDtype(torch.float, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    images = torchvision.datasets.ImageFolder(str(folder), prepare)
    return torch.utils.data.DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, pin_memory=DEVICE == "cuda"
    )


def ready(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what that loader hands on, with nothing left to do."""
    images = torch.randn(batch_size, 3, 224, 224)
    if DEVICE == "cuda":
        images = images.pin_memory()
    targets = torch.randint(4, (batch_size,))
    while True:
        yield images, targets


# -- ours ------------------------------------------------------------------------------------------


class Clock(Display):
    """Notes when the steps that count begin and end, and ends the training."""

    class OverError(Exception):
        """Enough was measured."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0

    def step(self, step: int, *, images: int, figures: Mapping[str, float] | None = None) -> None:
        """Note a step."""
        if step == STEPS[0]:
            self.begin = now()
        elif step == STEPS[1]:
            self.end = now()
            raise Clock.OverError


def ours(folder: Path, batch_size: int, *, workers: int, decode: bool, **training: Any) -> float:
    """Train by a recipe, and return the seconds of a step."""
    given = {
        "backbone": {"name": "resnet50", "weights": None},
        "data": {
            "path": str(folder), "size": 224, "augment": "standard", "mean": list(MEAN),
            "std": list(STD),
        },
        "training": {
            "batch_size": batch_size, "optimizer": "sgd", "workers": workers,
            "normalization": "train", "phases": [{"epochs": 9, "rate": 0.1, "thaw": ["all"]}],
            **training,
        },
    }  # fmt: skip
    clock = Clock()
    pixels = torch.randint(256, (batch_size, 3, 224, 224), dtype=torch.uint8)
    if DEVICE == "cuda":
        pixels = pixels.pin_memory()

    def handed(samples: Any, transforms: Any, steps: list[Any], *given: Any) -> Iterator[Any]:
        for indices in steps:
            yield pixels[: len(indices)], torch.from_numpy(indices.copy())

    with tempfile.TemporaryDirectory() as out:
        try:
            if decode:
                fit(given, out=Path(out) / "run", display=clock, accelerator=DEVICE)
            else:
                with patch.object(tvc_train.data.batches, "prepared", handed):
                    fit(given, out=Path(out) / "run", display=clock, accelerator=DEVICE)
        except Clock.OverError:
            pass
    return (clock.end - clock.begin) / (STEPS[1] - STEPS[0])


def write_photo(photo: Path, file: Path, number: int) -> None:
    """Write another part of a photo as a JPEG file."""
    with Image.open(photo) as picture:
        cut = picture.convert("RGB").crop((number, number, *picture.size))
        cut.save(file, quality=90)


def write_images(folder: Path, num: int, photos: Path | None) -> Path:
    """Write as many different images into four classes: of photos, or small ones of noise."""
    draw, jobs = np.random.default_rng(0), []
    found = sorted(photos.glob("*.jpg")) if photos else []
    for number in range(num):
        home = folder / f"class{number % 4}"
        home.mkdir(parents=True, exist_ok=True)
        if photos:
            photo = found[number % len(found)]
            jobs.append((photo, home / f"{number}.jpg", number // len(found)))
        else:
            noise = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(noise).save(home / f"{number}.bmp")
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(write_photo, jobs)
    return folder


# -- all of it -------------------------------------------------------------------------------------

LOOPS: dict[str, dict[str, Any] | bool] = {
    "reference": False,
    "reference, --amp": True,
    "float32": {},
    "bfloat16": {"precision": "bfloat16", "layout": "channels_last"},
    "bfloat16, compiled": {"precision": "bfloat16", "layout": "channels_last", "compile": True},
}
"""With `--amp` or without, and what a recipe says."""


def measure(given: argparse.Namespace) -> None:
    """Measure, and print each row."""
    for decode in (False, True):
        for batch in given.batch:
            theirs: dict[str, float] = {}
            # an epoch, of which a fifth is held out, has to be longer than what is timed
            num = batch * (STEPS[1] + 5) * 5 // 4
            with tempfile.TemporaryDirectory() as scratch:
                folder = write_images(Path(scratch), num, given.photos if decode else None)
                for name in given.loops:
                    loop = LOOPS[name]
                    if isinstance(loop, bool):
                        batches = files(folder, batch, given.workers) if decode else ready(batch)
                        found = theirs[name] = batch / reference(batches, amp=loop)
                    else:
                        found = batch / ours(
                            folder, batch, workers=given.workers, decode=decode, **loop
                        )
                    ratios = {
                        f"/ {other}": f"{found / value:.2f}" for other, value in theirs.items()
                    }
                    what = "from files" if decode else "ready"
                    print(
                        f"{what}, batch {batch}, {name}: {found:.0f} a second {ratios}", flush=True
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 32])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--loops", nargs="*", default=list(LOOPS), choices=list(LOOPS))
    parser.add_argument("--steps", type=int, nargs=2, default=STEPS)
    arguments = parser.parse_args()
    STEPS = tuple(arguments.steps)
    measure(arguments)
