"""The whole way on real weights and real images: patch, prove, fine-tune, evaluate, save, load.

EfficientNet-Lite0 with its ImageNet weights gets squeeze-excite around a late stage, is shown to
start exactly as the unpatched network, and is fine-tuned on scikit-learn's handwritten digits by
`examples/digits.yaml`: first the head and the new block, then the last stages as well. The saved
file is read back. Runs on a CPU in a few minutes and downloads nothing. The same training from the
command line: tvc train examples/digits.yaml
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tvc_train import fit
from tvc_train.showing import display_for

import tvc_core
from tvc_core import HybridBuilder, load_recipe

RECIPE = Path(__file__).with_name("digits.yaml")

console = Console()


@torch.no_grad()
def largest_difference(recipe: tvc_core.Recipe, images: torch.Tensor) -> float:
    """Return the largest absolute difference of any logit that the patches make at step 0."""
    builder = HybridBuilder()
    plain = builder.from_backbone(recipe.backbone).eval()
    patches = recipe.to_mapping()["backbone"]["patches"]
    patched = builder.from_backbone(recipe.backbone, patches=patches).eval()
    console.print(patched.explain(), highlight=False)
    return float((plain(images) - patched(images)).abs().max())


def main(out: str | None = None, changes: dict[str, Any] | None = None) -> float:
    """Run the demo and return the accuracy on the held-out digits."""
    start = time.perf_counter()
    torch.manual_seed(0)
    images = torch.randn(16, 3, 64, 64)
    difference = largest_difference(load_recipe(RECIPE), images)
    console.print(
        "\nlargest logit difference from the unpatched network at step 0: "
        f"[bold]{difference}[/bold]\n"
    )
    found = fit(RECIPE, out=out, changes=changes, display=display_for())
    accuracy = found.evaluation.figures["accuracy"]
    loaded = tvc_core.load(found.run.model).eval()
    with torch.no_grad():
        equal = torch.equal(loaded(images), found.model(images))
    size = found.run.model.stat().st_size
    held_out = len(found.evaluation.targets)
    console.print(f"accuracy on {held_out} held-out digits: [bold]{accuracy:.1%}[/bold]")
    console.print(f"saved ({size / 1e6:.1f} MB), loaded, outputs equal: [bold]{equal}[/bold]")
    console.print(f"everything lies in {found.run.folder}", highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s in all")
    if difference != 0 or not equal:
        raise SystemExit(
            "the hybrid did not start as its backbone, or the loaded model differs from the saved "
            "one"
        )
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="the folder of the run; by default runs/digits")
    parser.add_argument("--epochs", type=int, nargs=2, metavar=("FROZEN", "THAWED"))
    parser.add_argument("--size", type=int, help="side of the images, instead of the recipe's")
    arguments = parser.parse_args()
    given: dict[str, Any] = {}
    if arguments.epochs:
        for phase, epochs in enumerate(arguments.epochs):
            given[f"training.phases[{phase}].epochs"] = epochs
    if arguments.size:
        given["data.size"] = arguments.size
    main(arguments.out, given)
