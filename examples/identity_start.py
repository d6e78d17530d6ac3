"""Why a block starts as the identity: the same blocks in the same places, with the gate and with
the published start.

Classifies labeled photos with EfficientNet-Lite0's real ImageNet weights. The folder has image
files whose names start with the class index (0-999) in torchvision's order, such as 0105_koala.jpg.
Without a folder it compares logits on random images.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tvc_core import HybridBuilder

BACKBONE = "efficientnet_lite0"
LATE = ("features.6", "features.7")


def read_photos(folder: Path, prepare: nn.Module) -> tuple[Tensor, Tensor]:
    """Return prepared images [N, 3, 224, 224] and their labels."""
    files = sorted(file for file in folder.iterdir() if re.match(r"\d{1,4}_", file.name))
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    return images, torch.tensor([int(file.name.partition("_")[0]) for file in files])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [N, 1000] in eval mode."""
    model.eval()
    return torch.cat([model(batch) for batch in images.split(25)])


def main(folder: Path | None = None) -> None:
    """Print a table: block, start, photos classified right, largest logit difference from the plain
    network.
    """
    builder = HybridBuilder()
    plain = builder.from_backbone(BACKBONE)
    if folder is None:
        images, labels = (
            torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
            None,
        )
    else:
        images, labels = read_photos(folder, plain.transforms())
    expected = logits(plain, images)

    def right(found: Tensor) -> str:
        return (
            "-" if labels is None else f"{int((found.argmax(1) == labels).sum())} of {len(labels)}"
        )

    table = Table(
        "blocks around features.6 and features.7", "start", "right", "largest logit difference"
    )
    table.add_row("none", "-", right(expected), "0.0")
    for block in ("se", "eca", "cbam_block"):
        for start in ("identity", "paper"):
            torch.manual_seed(0)
            patches = {stage: {"wrap": {"type": block, "init": start}} for stage in LATE}
            found = logits(builder.from_backbone(BACKBONE, patches=patches), images)
            table.add_row(
                block, start, right(found), str(round(float((found - expected).abs().max()), 3))
            )
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="labeled photos")
    main(parser.parse_args().folder)
