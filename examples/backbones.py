"""Guide, "Working with Different Backbones": one network of each family, with a new head for ten
classes.

Prints what is installed, and for each network its size, its stages, the names that patches use and
the resolution that its weights expect.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

from tvc_core import HybridBuilder

NETWORKS = (
    "resnet18",
    "efficientnet_b0",
    "efficientnet_lite0",
    "convnext_tiny",
    "mobilenet_v3_large",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", default=NETWORKS, help="names of backbones (one of each family)"
    )
    parser.add_argument("--weights", default="none", help="none or DEFAULT (%(default)s)")
    arguments = parser.parse_args(argv)
    weights = None if arguments.weights == "none" else arguments.weights

    builder = HybridBuilder()
    plugins = sorted({info.owner for info in builder.registry.plugins})
    for plugin in plugins:
        if names := builder.list_backbones(owner=plugin):
            print(f"{plugin}: {', '.join(names)}")
    print()
    for name in arguments.networks:
        model = builder.from_backbone(name, weights=weights, num_classes=10)
        with warnings.catch_warnings():
            # without weights, transforms() says that it takes the default weights' ones
            warnings.simplefilter("ignore")
            pixels = model.transforms().crop_size[0]
        print(
            f"{name}: {model.count_parameters():,} parameters with a head for {model.num_classes} "
            f"classes, {pixels} pixels"
        )
        for stage in model.stage_info:
            print(
                f"  stage {stage.stage}: {stage.channels:>4} channels, stride {stage.stride:>2}, "
                f"{' '.join(stage.paths)}"
            )


if __name__ == "__main__":
    main()
