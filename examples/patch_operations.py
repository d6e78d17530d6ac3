"""Guide, "Patch Operations": wrap, inject and replace on a ResNet-18, and the errors of patches
that do not fit.

Prints for each operation where the block went, which names of the network changed and how far the
logits moved.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from tvc_core import HybridBuilder, TvcError

PATCHES: dict[str, dict[str, Any]] = {
    "wrap: layer3 -> se": {"layer3": {"wrap": {"type": "se", "params": {"reduction": 16}}}},
    "inject: layer3 -> eca": {"layer3": {"inject": "eca"}},
    "inject before: eca -> layer3": {"layer3": {"inject": {"type": "eca", "position": "before"}}},
    "deep inside: layer4.1.conv2 -> se": {"layer4.1.conv2": {"wrap": "se"}},
    "two on one layer": {"layer4": [{"wrap": "se"}, {"wrap": "spatial_attention"}]},
    "replace: conv_bn_act for layer1": {
        "layer1": {"replace": {"type": "conv_bn_act", "params": {"channels": 64}}}
    },
}
FAULTY: dict[str, tuple[str, dict[str, Any]]] = {
    "a misspelled layer": ("resnet18", {"layer_3": {"wrap": "se"}}),
    "a misspelled block": ("resnet18", {"layer3": {"wrap": "cbam"}}),
    "a replacement that is too narrow": ("resnet50", PATCHES["replace: conv_bn_act for layer1"]),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="none", help="none, DEFAULT or IMAGENET1K_V1 (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)

    builder = HybridBuilder()
    names = set(builder.from_torchvision("resnet18", weights=weights).state_dict())
    for title, patches in PATCHES.items():
        model = builder.from_torchvision("resnet18", weights=weights, patches=patches)
        keys = {key for key in model.state_dict() if not key.startswith("patches.")}
        print(title)
        for record in model.patch_records:
            print(f"  {record.block} lives at {', '.join(record.paths)}")
        print(
            f"  the network's own tensors: {len(names & keys)} of {len(names)} keep their names, "
            f"{len(keys - names)} are new"
        )
        print(
            "  largest logit difference from the network without it: "
            f"{model.step0_difference:.3g}\n"
        )

    for title, (backbone, patches) in FAULTY.items():
        try:
            builder.from_torchvision(backbone, weights=None, patches=patches)
        except TvcError as error:
            print(f"{title}\n  {type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
