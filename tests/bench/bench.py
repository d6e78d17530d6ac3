"""Figures of the speed promises, as ratios of paired runs in turn. Run by `make bench`; prints a
table and asserts nothing.

A ratio's median is what to quote; the machine may be shared, so absolute times are for orientation
only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from memory import kept_bytes
from rich.console import Console
from rich.table import Table
from torch import nn

from tvc_core import HybridBuilder, drop_closed_patches, fold_patches
from tvc_core.quarantine.process_state import run_preserved
from tvc_core.testing import write_distribution

LIST_MODELS = "import torchvision; torchvision.models.list_models()"
IMPORT = "import tvc_core"
LIST_BACKBONES = "from tvc_core import HybridBuilder; HybridBuilder.list_backbones()"


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes [s]."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def pairs(
    ours: Callable[[], object], theirs: Callable[[], object], runs: int
) -> list[tuple[float, float]]:
    """Return the times of both, run in turn after one uncounted run of each [s]."""
    ours(), theirs()
    return [(seconds(ours), seconds(theirs)) for _ in range(runs)]


def process(*arguments: str, path: str = "") -> Callable[[], object]:
    """Return an action that runs this Python with arguments, and with a folder of more
    distributions.
    """
    environment = {**os.environ, "PYTHONPATH": path}
    return lambda: subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, env=environment
    )


def write_plugins(folder: str, count: int) -> str:
    """Install distributions with a plugin of one block each into a folder, and return it."""
    for number in range(count):
        block = f"BlockSpec(name='gate{number}', factory='acme:Gate')"
        source = (
            "from tvc_core import BlockSpec, hookimpl\nTVC_API = (1, 0)\n@hookimpl\ndef "
            f"tvc_blocks(): return [{block}]\n"
        )
        write_distribution(Path(folder), f"acme-{number}", source)
    return folder


def forward(model: nn.Module, repeat: int) -> Callable[[], object]:
    """Return an action that runs a model on images [4, 3, 224, 224] in eval mode."""
    model.eval()
    x = torch.randn(4, 3, 224, 224)

    @torch.no_grad()
    def run() -> None:
        for _ in range(repeat):
            model(x)

    return run


def sixteen_patches() -> dict[str, dict[str, str]]:
    """Return a squeeze-excite around each of ResNet-50's 16 blocks."""
    lengths = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
    return {
        f"{layer}.{index}": {"wrap": "se"}
        for layer, length in lengths.items()
        for index in range(length)
    }


def kept_with_and_without(name: str, stages: list[int] | None) -> tuple[int, int]:
    """Return what a forward pass in training mode keeps without and with gradient checkpointing
    [bytes].
    """
    model = HybridBuilder().from_backbone(name, None).train()
    if stages is not None:
        model.freeze_backbone(unfreeze_stages=stages)
    x = torch.randn(4, 3, 224, 224)
    plain = kept_bytes(model, x)
    model.set_grad_checkpointing()
    return plain, kept_bytes(model, x)


def main(runs: int) -> None:
    """Measure and print."""
    builder = HybridBuilder()
    table = Table("what", "ours [s]", "theirs [s]", "ratio: median (min to max)", "promise")

    def row(
        what: str, timed: list[tuple[float, float]], promise: str, *, theirs_over_ours: bool = False
    ) -> None:
        ratios = [b / a if theirs_over_ours else a / b for a, b in timed]
        ours, theirs = (statistics.median(column) for column in zip(*timed, strict=True))
        spread = f"{statistics.median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
        table.add_row(what, f"{ours:.3f}", f"{theirs:.3f}", spread, promise)

    plugins = Table(
        "plugins installed besides",
        "listed later by [s]: median (min to max)",
        "import tvc_core later by [s]",
        "promise",
    )
    for count in (100, 300, 1000):
        with tempfile.TemporaryDirectory() as folder:
            write_plugins(folder, count)
            columns = []
            for code in (LIST_BACKBONES, IMPORT):
                later = [
                    a - b
                    for a, b in pairs(process("-c", code, path=folder), process("-c", code), runs)
                ]
                columns.append(
                    f"{statistics.median(later):.3f} ({min(later):.3f} to {max(later):.3f})"
                )
            plugins.add_row(str(count), *columns, "<= 0.15 s, 0" if count == 100 else "linear")
    Console(width=140).print(plugins)
    looks = statistics.median(seconds(lambda: run_preserved(int)) for _ in range(200))
    print(f"a look at the process's state, and putting it back: {looks * 1e6:.0f} us (100 us)")
    theirs = process("-c", LIST_MODELS)
    listing = pairs(process("-c", LIST_BACKBONES), theirs, runs)
    row(
        "list_backbones() / list_models(), fresh process",
        listing,
        ">= 20 times faster",
        theirs_over_ours=True,
    )
    command = pairs(process("-m", "tvc_cli", "list"), theirs, runs)
    row(
        "tvc list / list_models(), fresh process",
        command,
        ">= 15 times faster",
        theirs_over_ours=True,
    )
    recipe = str(Path(__file__).parents[2] / "examples" / "recipes" / "hybrid_model.yaml")
    for words, promise in (["--help"], "<= 1.3"), (["validate", recipe], "<= 3"):
        row(
            f"tvc {words[0]} / import tvc_core, fresh process",
            pairs(process("-m", "tvc_cli", *words), process("-c", IMPORT), runs),
            promise,
        )
    for name in ("resnet50", "efficientnet_b0", "swin_t"):
        torch.manual_seed(0)
        hybrid, own = (
            builder.from_backbone(name, None),
            torchvision.models.get_model(name, weights=None),
        )
        timed = pairs(forward(hybrid, 3), forward(own, 3), 3 * runs)
        row(f"forward of an unpatched {name}", timed, "1.00 +- 0.02")
    patches = sixteen_patches()
    own = torchvision.models.resnet50(weights=None)
    for what, inserted, take_away in (
        ("16 closed gates dropped", patches, drop_closed_patches),
        ("16 lora folded", {f"{key}.conv2": {"inject": "lora"} for key in patches}, fold_patches),
    ):
        hybrid = builder.from_backbone("resnet50", None, patches=inserted).eval()
        take_away(hybrid)
        timed = pairs(forward(hybrid, 3), forward(own, 3), 3 * runs)
        row(f"forward of resnet50 with {what} / plain", timed, "1.00 +- 0.02")
    timed = pairs(
        lambda: builder.from_backbone("resnet50", None, patches=patches),
        lambda: builder.from_backbone("resnet50", None),
        runs,
    )
    row("build of resnet50 with 16 patches / without", timed, "<= 1.5")
    one, all_of_them = (
        {target: {"replace": "frozen_batch_norm"}} for target in ("bn1", "**.type:BatchNorm2d")
    )
    timed = pairs(
        lambda: builder.from_backbone("resnet101", None, patches=all_of_them),
        lambda: builder.from_backbone("resnet101", None, patches=one),
        runs,
    )
    row("build of resnet101, all 104 BatchNorms replaced / one", timed, "<= 4")
    Console(width=140).print(table)
    memory = Table(
        "kept for the backward pass, images [4, 3, 224, 224]",
        "plain [MB]",
        "checkpointed [MB]",
        "ratio",
    )
    for name in ("resnet50", "convnext_tiny"):
        for what, stages in (("all stages train", None), ("the last two train", [-2, -1])):
            plain, checkpointed = kept_with_and_without(name, stages)
            row_of = (
                f"{plain / 1e6:.1f}",
                f"{checkpointed / 1e6:.1f}",
                f"{checkpointed / plain:.3f}",
            )
            memory.add_row(f"{name}, {what}", *row_of)
    Console(width=140).print(memory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    main(parser.parse_args().runs)
