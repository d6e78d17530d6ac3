"""The whole way on real weights and real images: patch, prove, fine-tune, save, load.

EfficientNet-Lite0 with its ImageNet weights gets squeeze-excite and CBAM around two late stages, is
fine-tuned on scikit-learn's handwritten digits, first with a frozen backbone, then with its last
stages thawed, and is saved and read back. Runs on a CPU in a few minutes and downloads nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import tvc_core
from tvc_core import HybridBuilder, HybridModel

SIDE = 64
BATCH = 64

console = Console()


def digits(limit: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, held-out images and labels: [N, 3, 64, 64] from scans of 8
    x 8 pixels.
    """
    data = load_digits()
    images = torch.tensor(data.images[:limit], dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(
        images, size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )
    images = ((images - 0.5) / 0.25).expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(data.target[:limit])
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, random_state=0, stratify=labels.numpy()
    )
    return images[train], labels[train], images[test], labels[test]


@torch.no_grad()
def accuracy(model: HybridModel, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is the label's."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(256), labels.split(256), strict=True)
    )
    return right / len(labels)


@torch.no_grad()
def largest_difference(plain: nn.Module, patched: nn.Module, images: Tensor) -> float:
    """Return the largest absolute difference of any logit on any image."""
    plain.eval()
    patched.eval()
    return max(float((plain(x) - patched(x)).abs().max()) for x in images.split(256))


def fine_tune(
    model: HybridModel, images: Tensor, labels: Tensor, *, epochs: int, lr: float, title: str
) -> None:
    """Train what is not frozen, with a progress bar."""
    generator = torch.Generator().manual_seed(0)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = epochs * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    model.train()
    with Progress(console=console) as progress:
        task = progress.add_task(title, total=steps)
        for _ in range(epochs):
            for index in torch.randperm(len(labels), generator=generator).split(BATCH):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images[index]), labels[index])
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, description=f"{title}, loss {loss.item():.3f}")


def show_parts(model: HybridModel, title: str) -> None:
    """Print a table of stem, stages and head with their parameters."""
    table = Table("part", "modules", "parameters", "trainable", title=title)
    for part in model.freeze_report().parts:
        table.add_row(
            part.name, str(part.num_modules), f"{part.num_parameters:,}", f"{part.num_trainable:,}"
        )
    console.print(table)


def main(epochs: tuple[int, int] = (3, 4), limit: int | None = None) -> float:
    """Run the demo and return the accuracy on the held-out digits."""
    start = time.perf_counter()
    torch.manual_seed(0)
    images, labels, held_out, held_out_labels = digits(limit)
    builder = HybridBuilder()
    plain = builder.from_backbone("efficientnet_lite0", weights="DEFAULT")
    model = builder.from_backbone(
        "efficientnet_lite0",
        weights="DEFAULT",
        patches={"features.6": {"wrap": "se"}, "features.7": {"wrap": "cbam_block"}},
    )
    console.print(model.explain(), highlight=False)
    difference = largest_difference(plain, model, held_out)
    console.print(
        "\nlargest logit difference from the unpatched network at step 0: "
        f"[bold]{difference}[/bold]\n"
    )

    model.reset_classifier(num_classes=10, dropout=0.2)
    model.freeze_backbone()
    before = accuracy(model, held_out, held_out_labels)
    show_parts(model, "frozen backbone")
    fine_tune(model, images, labels, epochs=epochs[0], lr=1e-2, title="head and new blocks")
    frozen = accuracy(model, held_out, held_out_labels)
    model.freeze_backbone(unfreeze_stages=[-3, -2, -1])
    show_parts(model, "last three stages thawed")
    fine_tune(model, images, labels, epochs=epochs[1], lr=2e-3, title="last stages thawed")
    after = accuracy(model, held_out, held_out_labels)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.safetensors"
        model.save(file)
        size = file.stat().st_size
        loaded = tvc_core.load(file).eval()
    with torch.no_grad():
        equal = torch.equal(loaded(held_out[:64]), model(held_out[:64]))

    console.print(
        f"accuracy on {len(held_out_labels)} held-out digits: {before:.1%} at first, {frozen:.1%} "
        "with a frozen backbone"
    )
    console.print(f"accuracy after thawing: [bold]{after:.1%}[/bold]")
    console.print(f"saved ({size / 1e6:.1f} MB), loaded, outputs equal: [bold]{equal}[/bold]")
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    if difference != 0 or not equal:
        raise SystemExit(
            "the hybrid did not start as its backbone, or the loaded model differs from the saved "
            "one"
        )
    return after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, nargs=2, default=(3, 4), metavar=("FROZEN", "THAWED"))
    parser.add_argument("--limit", type=int, help="use only the first images")
    arguments = parser.parse_args()
    main(tuple(arguments.epochs), arguments.limit)
