"""Guide, "Adding Attention": squeeze-excite and CBAM in a ResNet-50, and what each attention block
costs.

Prints the report of the model, then a table of all installed attention blocks after layer4:
parameters that each adds, and the largest logit difference from the network without it, with the
identity start (the default) and with the published one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from tvc_core import HybridBuilder


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default="resnet50", help="one of torchvision's ResNets (%(default)s)"
    )
    parser.add_argument(
        "--weights",
        default="none",
        help="none, DEFAULT or a name such as IMAGENET1K_V2 (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights
    torch.manual_seed(0)

    builder = HybridBuilder()
    model = builder.from_torchvision(
        arguments.backbone,
        weights=weights,
        patches={"layer3": {"wrap": "se"}, "layer4": {"wrap": "cbam_block"}},
        num_classes=100,
    )
    print(model.explain())

    plain = builder.from_torchvision(arguments.backbone, weights=weights)
    print(f"\n{'block':<20} {'parameters':>10} {'identity start':>15} {'published start':>16}")
    for name in builder.list_blocks(category="attention"):
        differences = []
        for init in ("identity", "paper"):
            patches = {"layer4": {"wrap": {"type": name, "init": init}}}
            patched = builder.from_torchvision(arguments.backbone, weights=weights, patches=patches)
            differences.append(patched.step0_difference)
        # the published start has no gate of ours
        added = patched.count_parameters() - plain.count_parameters()
        print(f"{name:<20} {added:>10,} {differences[0]:>15g} {differences[1]:>16.3g}")


if __name__ == "__main__":
    main()
