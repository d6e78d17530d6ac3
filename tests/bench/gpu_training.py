"""Fine-tuning on a GPU beside torchvision's reference loop: images a second, side by side.

    python tests/bench/gpu_training.py --photos FOLDER [--page docs/explanation/training-speed.md]

ResNet-50, all of it thawed, 224 pixels, trained by a recipe with `precision: bfloat16` and
`layout: channels_last`, without and with `compile: true`, beside the loop of torchvision's
references/classification/train.py, written again from what it does: as it starts (float32,
cuDNN's benchmark, SGD, accuracies read after each step) and with its `--amp`. Once with images that
are ready in memory, as either's loader hands them on (8 bits here, normalized float32 there), and
once from JPEG files in 16 processes. Asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torchvision
import tvc_train.data.batches
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


def write_images(photos: Path, folder: Path, num: int) -> Path:
    """Write as many JPEG files, each with other bytes behind the image, into four classes."""
    found = [each.read_bytes() for each in sorted(photos.glob("*.jpg"))]
    for number in range(num):
        home = folder / f"class{number % 4}"
        home.mkdir(parents=True, exist_ok=True)
        content = found[number % len(found)] + number.to_bytes(4, "big")
        (home / f"{number}.jpg").write_bytes(content)
    return folder


# -- the page --------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16", "layout": "channels_last"},
    "bfloat16, compiled": {"precision": "bfloat16", "layout": "channels_last", "compile": True},
}


def measured(given: argparse.Namespace, report: Callable[[dict[str, Any]], None]) -> None:
    """Measure, and report each row."""
    with tempfile.TemporaryDirectory() as scratch:
        num = max(given.batch) * (STEPS[1] + 10)
        folder = write_images(given.photos, Path(scratch) / "images", num)
        for decode in (False, True):
            for batch in given.batch:
                theirs = {}
                for name, amp in (("reference", False), ("reference, --amp", True)):
                    batches = files(folder, batch, given.workers) if decode else ready(batch)
                    theirs[name] = batch / reference(batches, amp=amp)
                    report(
                        {"decode": decode, "batch": batch, "loop": name, "a second": theirs[name]}
                    )
                for name, training in KINDS.items():
                    if name in given.leave_out or (
                        "compiled" in name and batch != max(given.batch)
                    ):
                        continue
                    took = ours(folder, batch, workers=given.workers, decode=decode, **training)
                    report(
                        {
                            "decode": decode,
                            "batch": batch,
                            "loop": name,
                            "a second": batch / took,
                            **{f"/ {key}": batch / took / value for key, value in theirs.items()},
                        }
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--leave-out", nargs="*", default=[])
    parser.add_argument("--steps", type=int, nargs=2, default=STEPS)
    given = parser.parse_args()
    STEPS = tuple(given.steps)
    measured(given, lambda row: print(row, flush=True))
